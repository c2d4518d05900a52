"""Every naming of an upscaler's layers loads as the same network, and what is none is refused by its reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import UpscalerSpec
from deployments.engine.upscaling.weights import load_upscaler
from tests.deployments.engine.upscaling.networks import NAMINGS, as_basicsr, compact, rrdb, seeded, tensors_of

CPU = torch.device("cpu")
PIXELS = torch.rand(1, 3, 13, 18, generator=torch.Generator().manual_seed(5))


def load(path: Path) -> nn.Module:
    return load_upscaler(UpscalerSpec("it", str(path)), CPU, torch.float32)


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize(("doublings", "shrink", "scale"), [(2, 1, 4), (2, 2, 2), (1, 1, 2), (2, 4, 1), (3, 1, 8)])
def test_every_naming_is_the_same_network(naming: str, doublings: int, shrink: int, scale: int, tmp_path: Path) -> None:
    network = seeded(lambda: rrdb(doublings, shrink))
    save_file(NAMINGS[naming](tensors_of(network)), tmp_path / "it.safetensors")
    loaded = load(tmp_path / "it.safetensors")
    with torch.inference_mode():
        assert torch.equal(loaded(PIXELS), network(PIXELS))
        assert loaded(PIXELS).shape == (1, 3, 13 * scale, 18 * scale)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_the_compact_network_loads_by_its_shapes(scale: int, tmp_path: Path) -> None:
    network = seeded(lambda: compact(scale))
    save_file(tensors_of(network), tmp_path / "it.safetensors")
    loaded = load(tmp_path / "it.safetensors")
    with torch.inference_mode():
        assert torch.equal(loaded(PIXELS), network(PIXELS))
        assert loaded(PIXELS).shape == (1, 3, 13 * scale, 18 * scale)


def missing_layer(path: Path) -> None:
    tensors = as_basicsr(tensors_of(seeded(rrdb)))
    del tensors["body.1.rdb2.conv3.weight"]
    save_file(tensors, path)


def grey(path: Path) -> None:
    tensors = as_basicsr(tensors_of(seeded(rrdb)))
    save_file(tensors | {"conv_first.weight": tensors["conv_first.weight"][:, :1].contiguous()}, path)


def something_else(path: Path) -> None:
    save_file({"unet.weight": torch.zeros(3)}, path)


def pickled(path: Path) -> None:
    torch.save(tensors_of(seeded(rrdb)), path)


def cut_off(path: Path) -> None:
    save_file(tensors_of(seeded(rrdb)), path)
    path.write_bytes(path.read_bytes()[:-100])


def not_there(path: Path) -> None:
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (missing_layer, "other layers"),
        (grey, "other layers"),
        (something_else, "other layers"),
        (pickled, "pickle"),
        (cut_off, "no whole safetensors file"),
        (not_there, "revision"),
    ],
)
def test_what_is_no_upscaler_is_refused_by_its_reason(
    write: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    write(tmp_path / "it.safetensors")
    with pytest.raises(ModelLoadError, match=reason) as refused:
        load(tmp_path / "it.safetensors")
    assert refused.value.message.startswith("upscaler 'it'")

"""Networks that are loaded to be trained on can be learnt through, on every device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deployments.engine.protocol.spec import ModelSpec
from deployments.training.lora.base_networks import load_base
from tests.deployments.engine.tiny import save_tiny_checkpoint

LIBRARIES = {"torch", "diffusers", "transformers"}


@pytest.fixture
def _stays_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is moved to a CUDA device; what is decided by its name is."""
    move = nn.Module.to

    def move_elsewhere(self: nn.Module, *given: Any, **named: Any) -> nn.Module:
        kept = [each for each in given if not (isinstance(each, torch.device) and each.type == "cuda")]
        return move(self, *kept, **named) if kept or named else self

    monkeypatch.setattr(nn.Module, "to", move_elsewhere)
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures("_stays_here")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_they_are_the_libraries_own_and_have_gradients(device: str, tmp_path: Path) -> None:
    base = load_base(ModelSpec("tiny", str(save_tiny_checkpoint(tmp_path))), torch.device(device), torch.float32)
    modules = [each for part in (base.unet, base.vae, *base.text_encoders) for each in part.modules()]
    assert {type(each).__module__.partition(".")[0] for each in modules} <= LIBRARIES
    assert not any(each._forward_hooks for each in modules)
    latents = torch.randn(1, 4, 8, 8, requires_grad=True)
    base.unet(latents, torch.tensor([500]), torch.randn(1, 77, 32)).sample.sum().backward()
    assert latents.grad is not None
    assert bool(latents.grad.abs().sum() > 0)


def test_the_digest_is_of_all_parts(tmp_path: Path) -> None:
    def digests(folder: Path) -> tuple[str, str]:
        base = load_base(ModelSpec("tiny", str(folder)), torch.device("cpu"), torch.float32)
        return base.digest, base.fingerprint

    seen = [digests(save_tiny_checkpoint(tmp_path / "same")), digests(save_tiny_checkpoint(tmp_path / "again"))]
    assert seen[0] == seen[1]
    for file in ("vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
        folder = save_tiny_checkpoint(tmp_path / file.partition("/")[0])
        with (folder / file).open("a") as config:
            config.write("\n")
        digest, fingerprint = digests(folder)
        assert digest not in {one for one, _ in seen}
        assert fingerprint == seen[0][1]
        seen.append((digest, fingerprint))

"""Networks that go to CUDA are prepared for it when they are loaded, and nowhere else. Loading itself is left out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deployments.engine.cuda.group_norm import FusedGroupNorm
from deployments.engine.models import components
from deployments.engine.models.components import Components, PartFolder
from tests.deployments.engine.tiny import tiny_controlnet, tiny_text_encoder, tiny_tokenizer, tiny_unet, tiny_vae

Load = Callable[[Components, PartFolder], Any]

NETWORKS: dict[str, tuple[Load, Callable[[], nn.Module]]] = {
    "unet": (lambda parts, part: parts.unet(part), tiny_unet),
    "vae": (lambda parts, part: parts.vae(part), tiny_vae),
    "controlnet": (lambda parts, part: parts.controlnet("canny", part).network, lambda: tiny_controlnet(1)),
    "text encoder": (
        lambda parts, part: parts.text_encoder(part),
        lambda: tiny_text_encoder(tiny_tokenizer()),
    ),
}


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    yield
    torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize(("device", "prepared"), [("cuda", True), ("cpu", False)])
@pytest.mark.parametrize("name", NETWORKS)
def test_only_networks_that_convolve_and_go_to_cuda_are_prepared(
    name: str, device: str, prepared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, make = NETWORKS[name]
    monkeypatch.setattr(components, "load_network", lambda *_, **__: make())
    network = load(Components(torch.device(device), torch.float32), PartFolder(name, name, tmp_path))
    is_fused = any(isinstance(module, FusedGroupNorm) for module in network.modules())
    assert is_fused == (prepared and name != "text encoder")
    assert torch.backends.cudnn.benchmark == prepared

"""Fixtures for tests of references: tiny models with IP-Adapters."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec
from tests.deployments.engine.ip_adapter.tiny_ip_adapters import save_ip_adapters


@pytest.fixture(scope="session")
def ip_adapters(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, IpAdapterSpec]:
    """Adapters of `tiny_checkpoint`: two plain ones, and a plus one."""
    unet = UNet2DConditionModel.from_pretrained(tiny_checkpoint / "unet")
    return save_ip_adapters(tmp_path_factory.mktemp("ip_adapters"), unet)


@pytest.fixture(scope="session")
def referring_model(
    tiny_checkpoint: Path, tiny_controlnets: dict[str, str], ip_adapters: dict[str, IpAdapterSpec]
) -> LoadedModel:
    """`tiny_checkpoint`, loaded, with ControlNets and IP-Adapters."""
    spec = ModelSpec("tiny", str(tiny_checkpoint), controlnets=tiny_controlnets, ip_adapters=ip_adapters)
    return load_model(spec, torch.device("cpu"), torch.float32)

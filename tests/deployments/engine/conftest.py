"""Fixtures for engine tests: checkpoints made of tiny real networks."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec
from tests.deployments.engine.ip_adapter.tiny_ip_adapters import save_ip_adapters
from tests.deployments.engine.tiny import save_tiny_checkpoint, save_tiny_controlnet


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that predicts epsilon."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_checkpoint_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that predicts v."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny_v"), prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> LoadedModel:
    """`tiny_checkpoint`, loaded."""
    return load_model(ModelSpec("tiny", str(tiny_checkpoint)), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def tiny_model_v(tiny_checkpoint_v: Path) -> LoadedModel:
    """`tiny_checkpoint_v`, loaded."""
    return load_model(ModelSpec("tiny-v", str(tiny_checkpoint_v)), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def tiny_checkpoint_9(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inpainting checkpoint, of nine input channels."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny_9"), in_channels=9)


@pytest.fixture(scope="session")
def tiny_controlnets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """ControlNet folders by type: two plain ones, and one that sees its hint as BGR and answers with averages."""
    root = tmp_path_factory.mktemp("controlnets")
    odd = {"controlnet_conditioning_channel_order": "bgr", "global_pool_conditions": True}
    return {
        "canny": str(save_tiny_controlnet(root / "canny", seed=11)),
        "depth": str(save_tiny_controlnet(root / "depth", seed=12)),
        "shuffle": str(save_tiny_controlnet(root / "shuffle", seed=13, **odd)),
    }


@pytest.fixture(scope="session")
def tiny_model_9(tiny_checkpoint_9: Path, tiny_controlnets: dict[str, str]) -> LoadedModel:
    """`tiny_checkpoint_9`, loaded, with its ControlNets."""
    spec = ModelSpec("tiny-9", str(tiny_checkpoint_9), controlnets=tiny_controlnets)
    return load_model(spec, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def tiny_controlled(tiny_checkpoint: Path, tiny_controlnets: dict[str, str]) -> LoadedModel:
    """`tiny_checkpoint`, loaded, with its ControlNets."""
    spec = ModelSpec("tiny", str(tiny_checkpoint), controlnets=tiny_controlnets)
    return load_model(spec, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def ip_adapters(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, IpAdapterSpec]:
    """IP-Adapters for `tiny_checkpoint`: two plain ones, and a plus one."""
    unet = UNet2DConditionModel.from_pretrained(tiny_checkpoint / "unet")
    return save_ip_adapters(tmp_path_factory.mktemp("ip_adapters"), unet)


@pytest.fixture(scope="session")
def tiny_referring(
    tiny_checkpoint: Path, tiny_controlnets: dict[str, str], ip_adapters: dict[str, IpAdapterSpec]
) -> LoadedModel:
    """`tiny_controlled`, with IP-Adapters."""
    spec = ModelSpec("tiny", str(tiny_checkpoint), controlnets=tiny_controlnets, ip_adapters=ip_adapters)
    return load_model(spec, torch.device("cpu"), torch.float32)

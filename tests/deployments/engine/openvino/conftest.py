"""The tiny models on OpenVINO."""

from pathlib import Path

import pytest
import torch

from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.openvino.runtime import OpenVinoRuntime
from deployments.engine.protocol.spec import ModelSpec

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    """Loads networks to run on OpenVINO."""
    runtime = OpenVinoRuntime(threads=1, folder=tmp_path_factory.mktemp("converted"))
    return Components(CPU, torch.float32, openvino=runtime)


@pytest.fixture(scope="session")
def fast_controlled(tiny_checkpoint: Path, tiny_controlnets: dict[str, str], components: Components) -> LoadedModel:
    """`tiny_controlled`, on OpenVINO."""
    spec = ModelSpec("tiny", str(tiny_checkpoint), controlnets=tiny_controlnets)
    return load_model(spec, CPU, torch.float32, components)


@pytest.fixture(scope="session")
def fast_model_9(tiny_checkpoint_9: Path, tiny_controlnets: dict[str, str], components: Components) -> LoadedModel:
    """`tiny_model_9`, on OpenVINO."""
    spec = ModelSpec("tiny-9", str(tiny_checkpoint_9), controlnets=tiny_controlnets)
    return load_model(spec, CPU, torch.float32, components)


@pytest.fixture(scope="module")
def runtime() -> OpenVinoRuntime:
    """Keeps nothing on disk."""
    return OpenVinoRuntime(threads=1)

"""One tiny checkpoint and a ControlNet for it, made by the benches' own writers."""

from pathlib import Path

import pytest
import torch

from bench.checkpoints import TINY, write_checkpoint, write_controlnet
from bench.engine.workload import CONTROL
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.spec import ModelSpec


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(TINY, folder, torch.device("cpu"), torch.float32)
    return folder


@pytest.fixture(scope="package")
def model(folder: Path) -> LoadedModel:
    return load_model(ModelSpec("tiny", str(folder)), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="package")
def controlled(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The same checkpoint with a ControlNet beside it."""
    net = tmp_path_factory.mktemp("controlnet")
    write_controlnet(folder, net, torch.float32)
    spec = ModelSpec("tiny", str(folder), controlnets={CONTROL: str(net)})
    return load_model(spec, torch.device("cpu"), torch.float32)

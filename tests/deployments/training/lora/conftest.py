"""A model to train on, and pictures to learn from."""

from pathlib import Path

import pytest

from deployments.engine.protocol.spec import ModelSpec
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.deployments.training.lora.pictures import write_pictures


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return ModelSpec("tiny", str(save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))

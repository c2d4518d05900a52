"""Fixtures for engine tests: checkpoints made of tiny real networks."""

from pathlib import Path

import pytest
import torch

from deployments.engine.models import LoadedModel, load_model
from deployments.engine.spec import ModelSpec
from tests.deployments.engine.tiny import save_tiny_checkpoint


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

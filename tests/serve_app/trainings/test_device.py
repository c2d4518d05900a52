"""A training that is given no GPU is not ordered to look for one."""

from pathlib import Path

import pytest

from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.versions import LoraVersions
from deployments.training.lora.order import read_order
from deployments.training.lora.settings import TrainingSettings
from serve_app.config.sections import TrainingConfig
from serve_app.trainings.manager import Trainings
from serve_app.trainings.runner import TrainingRunner
from tests.deployments.training.lora.pictures import picture
from tests.serve_app.trainings.test_runner import Scripted


@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (1, "auto")])
async def test_a_training_looks_for_a_gpu_only_if_it_has_one_to_itself(
    num_gpus: float, device: str, tmp_path: Path
) -> None:
    (tmp_path / "loras").mkdir()
    config = TrainingConfig(folder=str(tmp_path / "trainings"), num_gpus=num_gpus)
    runner = TrainingRunner(lambda _: Scripted())
    trainings = Trainings(config, [ModelSpec("tiny", "tiny")], LoraVersions(tmp_path / "loras"), runner)
    settings = TrainingSettings(name="cup", trigger="cup", model_name="tiny")
    begun = await trainings.start("acme", settings, {"0.png": picture()}, None)
    assert read_order(begun.run.path).device == device
    trainings.stop()

"""A training that is given no GPU is not ordered to look for one, and one with several has a process for each."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.versions import LoraVersions
from deployments.training.lora.order import read_order
from deployments.training.lora.settings import TrainingSettings
from serve_app.config.sections import TrainingConfig
from serve_app.trainings.manager import Trainings
from serve_app.trainings.runner import TrainingRunner
from tests.deployments.training.lora.pictures import picture
from tests.serve_app.trainings.test_runner import Scripted


@pytest.mark.parametrize(("num_gpus", "device", "processes"), [(0, "cpu", 1), (0.5, "auto", 1), (4, "auto", 4)])
async def test_a_training_looks_for_a_gpu_only_if_it_has_one_to_itself(
    num_gpus: float, device: str, processes: int, tmp_path: Path
) -> None:
    (tmp_path / "loras").mkdir()
    config = TrainingConfig(folder=str(tmp_path / "trainings"), num_gpus=num_gpus)
    runner = TrainingRunner(lambda _: Scripted())
    trainings = Trainings(config, [ModelSpec("tiny", "tiny")], LoraVersions(tmp_path / "loras"), runner)
    settings = TrainingSettings(name="cup", trigger="cup", model_name="tiny")
    begun = await trainings.start("acme", settings, {"0.png": picture()}, None)
    order = read_order(begun.run.path)
    assert (order.device, order.processes) == (device, processes)
    trainings.stop()


def test_several_gpus_are_whole_ones() -> None:
    with pytest.raises(ValidationError, match="whole number"):
        TrainingConfig(folder="trainings", num_gpus=1.5)

"""A training in half precision, as on GPUs, learns, makes samples and is judged. bfloat16 shows it on a CPU too."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from deployments.engine.protocol.spec import ModelSpec
from deployments.training.lora import training_run
from deployments.training.lora.dataset import read_examples
from deployments.training.lora.learning.processes import TrainingProcesses
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingLimits
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.deployments.training.lora.learning.test_trainer import settings
from tests.deployments.training.lora.pictures import write_pictures


def join_bf16() -> TrainingProcesses:
    return TrainingProcesses(Accelerator(cpu=True, mixed_precision="bf16"))


@pytest.fixture(autouse=True)
def _own_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """bfloat16, which accelerate takes for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(training_run, "join_processes", lambda device: join_bf16())
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_training_in_half_precision_makes_samples_and_is_judged(tmp_path: Path) -> None:
    spec = ModelSpec("tiny", str(save_tiny_checkpoint(tmp_path / "model")))
    asked, run = settings(steps=2, sample_every=1, validate_every=1), RunFolder(tmp_path / "run")
    examples = read_examples(write_pictures(tmp_path / "pictures"), asked, TrainingLimits())
    found = training_run.train_lora(run, examples, asked, spec, TrainingLimits())
    assert [path.name for path in run.list_samples()] == ["000001-00.png", "000002-00.png"]
    assert [point.step for point in run.read_losses()] == [1, 2]
    assert found.drift is not None
    assert found.drift > 0
    assert {tensor.dtype for tensor in load_file(run.lora).values()} == {torch.float32}

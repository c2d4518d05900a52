"""What only a GPU can show of a training: it learns there, goes on, makes samples, and is judged."""

from pathlib import Path

import pytest
import torch

from deployments.engine.protocol.spec import ModelSpec
from deployments.training.lora.dataset import read_examples
from deployments.training.lora.learning.processes import join_processes
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingLimits
from deployments.training.lora.training_run import train_lora
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.deployments.training.lora.learning.test_trainer import settings
from tests.deployments.training.lora.pictures import write_pictures

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_three_steps_and_their_evaluation(tmp_path: Path) -> None:
    spec = ModelSpec("tiny", str(save_tiny_checkpoint(tmp_path / "model")))
    asked, run = settings(steps=3, sample_every=2, validate_every=1, checkpoint_every=2), RunFolder(tmp_path / "run")
    examples = read_examples(write_pictures(tmp_path / "pictures"), asked, TrainingLimits())
    assert join_processes("cuda").device.type == "cuda"
    found = train_lora(run, examples, asked, spec, TrainingLimits(), device="cuda")
    assert [point.step for point in run.read_losses()] == [1, 2, 3]
    assert [path.name for path in run.list_samples()] == ["000002-00.png", "000003-00.png"]
    assert found.drift is not None
    assert found.drift > 0
    again = train_lora(run, examples, asked, spec, TrainingLimits(), device="cuda")
    assert again.prompts == found.prompts
    assert len(run.read_losses()) == 3

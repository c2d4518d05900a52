"""A training runs where it was told to, or not at all; and what is served says which weights it has."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from deployments.engine.protocol.errors import InvalidParameter, ModelLoadError
from deployments.engine.protocol.spec import ModelSpec
from deployments.training.lora.dataset import read_examples
from deployments.training.lora.learning.processes import join_processes
from deployments.training.lora.learning.trainer import LoraTrainer
from deployments.training.lora.registration import write_card
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingLimits
from deployments.training.lora.training_run import train_lora
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.deployments.training.lora.learning.test_trainer import settings
from tests.deployments.training.lora.pictures import write_pictures


@pytest.mark.parametrize("device", ["typo", "cuda:0", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(InvalidParameter, match="auto, cpu, cuda") as refused:
        join_processes(device)
    assert refused.value.field == "device"


def test_a_gpu_that_is_not_there_is_refused_and_none_is_looked_for_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelLoadError, match="'cuda' is asked for"):
        join_processes("cuda")
    for device in ("auto", "cpu"):
        assert join_processes(device).device.type == "cpu"


def test_the_header_and_the_card_are_those_of_the_weights_that_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr(LoraTrainer, "_find_validation_loss", lambda self: next(losses))
    spec = ModelSpec("tiny", str(save_tiny_checkpoint(tmp_path / "model")))
    asked, run = settings(steps=100, validate_every=2, patience=2, prior_pictures=0), RunFolder(tmp_path / "run")
    examples = read_examples(write_pictures(tmp_path / "pictures"), asked, TrainingLimits())
    train_lora(run, examples, asked, spec, TrainingLimits(), device="cpu")
    with safe_open(run.lora, "pt") as file:
        header = file.metadata()
    weights, training = (json.loads(header[f"darkroom.{name}"]) for name in ("weights", "training"))
    assert (header["ss_steps"], weights["step"], weights["validation_loss"]) == ("4", 4, 1.0)
    assert (training["step"], training["validation_loss"]) == (8, 2.5)
    assert weights["loss"] != training["loss"]
    card = list(write_card("cup", header))
    assert "| weights | those after step 4 |" in card
    assert f"| loss | {weights['loss']:.4g}, of pictures kept out 1 |" in card
    old = {name: value for name, value in header.items() if name != "darkroom.weights"}
    assert "| weights | those after step 8 |" in write_card("cup", old)

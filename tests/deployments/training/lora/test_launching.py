"""Several processes learn what one learns, end together, and say so when one of them dies."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deployments.engine.protocol.spec import ModelSpec
from deployments.training.lora.dataset import read_examples
from deployments.training.lora.order import TrainingOrder
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingLimits
from deployments.training.lora.training_run import train_lora
from serve_app.launch.processes import find_descendants
from serve_app.trainings.runner import launch_process
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.deployments.training.lora.learning.test_trainer import settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return ModelSpec("tiny", str(save_tiny_checkpoint(folder)), native_size=64)


def launch(folder: Path, model: ModelSpec, source: Path, processes: int, **changes: Any) -> subprocess.Popen[bytes]:
    run = RunFolder(folder)
    run.begin(settings(**changes))
    run.change_progress(state="queued")
    TrainingOrder(model, source, TrainingLimits(steps=10**6), "cpu", processes).write(folder)
    started = launch_process(folder)
    assert isinstance(started, subprocess.Popen)
    return started


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def train_alone(folder: Path, model: ModelSpec, source: Path, **changes: Any) -> RunFolder:
    asked, run, limits = settings(**changes), RunFolder(folder), TrainingLimits()
    train_lora(run, read_examples(source, asked, limits), asked, model, limits, device="cpu")
    return run


def test_three_processes_learn_what_one_learns(model: ModelSpec, source: Path, tmp_path: Path) -> None:
    """At half the size of four rows, which are not even for three; then of two, and one process has none."""
    changes = {"batch_size": 1, "steps": 8, "validate_every": 8, "half_size_share": 0.25}
    process = launch(tmp_path / "three", model, source, 3, **changes)
    assert process.wait(280) == 0, (tmp_path / "three" / "log.txt").read_text()
    together, alone = RunFolder(tmp_path / "three"), train_alone(tmp_path / "one", model, source, **changes)
    assert together.read_progress().state == "succeeded"
    assert [path.name for path in together.list_samples()] == [path.name for path in alone.list_samples()]
    curves = [
        torch.tensor([(point.loss, point.prior_loss, point.validation_loss or 0.0) for point in run.read_losses()])
        for run in (together, alone)
    ]
    assert curves[1].shape == (8, 3)
    torch.testing.assert_close(*curves, rtol=1e-3, atol=1e-5)
    learnt, expected = load_file(together.lora), load_file(alone.lora)
    assert learnt.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(learnt[name], weight, rtol=1e-2, atol=1e-4)


def test_cancelling_ends_all_of_them_and_one_alone_goes_on(model: ModelSpec, source: Path, tmp_path: Path) -> None:
    run, changes = RunFolder(tmp_path), {"steps": 60, "checkpoint_every": 1000, "validation_share": 0.0}
    process = launch(tmp_path, model, source, 2, **changes)
    wait_until(lambda: len(run.read_losses()) > 1, process)
    started = find_descendants(process.pid)
    assert len(started) >= 2
    run.ask_to_cancel()
    assert process.wait(60) != 0
    assert run.read_progress().state == "cancelled"
    assert 2 <= len(run.read_losses()) < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
    run.forget_cancel()
    train_alone(tmp_path, model, source, **changes)
    assert [point.step for point in run.read_losses()] == list(range(1, 61))


def test_if_one_dies_the_training_has_failed(model: ModelSpec, source: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    process = launch(tmp_path, model, source, 2, steps=10_000)
    wait_until(lambda: len(run.read_losses()) > 1, process)
    started = find_descendants(process.pid)
    helper = next(pid for pid in started if b"RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(helper, signal.SIGKILL)
    assert process.wait(60) == 1
    progress = run.read_progress()
    assert progress.state == "failed"
    assert progress.error
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)

"""A training as a Ray task waits for its own resources, tells how it ended, and its process ends with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.engine.protocol.spec import ModelSpec
from deployments.training.lora.order import TrainingOrder
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingLimits, TrainingSettings
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.deployments.training.lora.pictures import write_pictures

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CODE = """
import json, sys, time
from pathlib import Path
import ray
from serve_app.trainings.ray_tasks import launch_task
short, long = map(Path, sys.argv[1:])
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
first, second = launch_task(short, num_cpus=1, num_gpus=0), launch_task(long, num_cpus=1, num_gpus=0)
def wait(condition):
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
early = []
def first_is_over():
    begun = (long / "log.txt").exists()
    over = first.poll() is not None
    early.append(begun and not over)
    return over
wait(first_is_over)
waited = not any(early)
step = lambda: json.loads((long / "progress.json").read_text())["step"] if (long / "progress.json").exists() else 0
wait(lambda: step() > 0)
second.terminate()
wait(lambda: second.poll() is not None)
time.sleep(1)
ended = step()
time.sleep(3)
print(json.dumps([first.poll(), waited, second.poll(), ended > 0, step() == ended]))
"""


def ordered(folder: Path, spec: ModelSpec, source: Path, steps: int) -> Path:
    run = RunFolder(folder)
    fields = {"name": "cup", "trigger": "cup", "model_name": "tiny", "rank": 2, "steps": steps, "prior_pictures": 0}
    run.begin(TrainingSettings.model_validate(fields | {"evaluation_prompts": ["a"], "unrelated_prompts": ["b"]}))
    TrainingOrder(spec, source, TrainingLimits(steps=10**6), "cpu").write(folder)
    return folder


def test_a_task_waits_for_its_cpu_and_its_process_ends_with_it(tmp_path: Path) -> None:
    spec = ModelSpec("tiny", str(save_tiny_checkpoint(tmp_path / "model")), native_size=64)
    source = write_pictures(tmp_path / "pictures", 2)
    folders = [ordered(tmp_path / name, spec, source, steps) for name, steps in (("short", 2), ("long", 100_000))]
    command = [sys.executable, "-c", CODE, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, True, 1, True, True]

"""Runs trainings as Ray tasks, each on CPUs and GPUs of its own: Ray waits until nothing else has them."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray

from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.versions import LoraVersions
from serve_app.config.server import AppConfig
from serve_app.generation.blocklist import Blocklist
from serve_app.trainings.manager import Trainings
from serve_app.trainings.runner import TrainingProcess, TrainingRunner, launch_process

_LOOK_S: Final = 0.5


def create_trainings(config: AppConfig, models: Sequence[ModelSpec], blocklist: Blocklist) -> Trainings | None:
    """Returns the trainings that `config` describes, on this process' Ray cluster; None if it describes none.

    The `blocklist` is that of all the server's prompts.
    """
    settings, folder = config.training, config.loras.folder
    if settings is None or folder is None:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    versions = LoraVersions(Path(folder), frozenset(row.name for row in config.loras.named))
    launch = partial(launch_task, num_cpus=settings.num_cpus, num_gpus=settings.num_gpus)
    return Trainings(settings, models, versions, TrainingRunner(launch, settings.running), blocklist)


def launch_task(folder: Path, *, num_cpus: float, num_gpus: float) -> TrainingProcess:
    """Starts the training in `folder`, which all nodes see, as a task that waits for these resources."""
    options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": 0}
    return _Task(ray.remote(_train).options(**options).remote(folder))


def _train(folder: Path) -> int:
    """In a process of its own, as elsewhere: a worker that stays must not keep torch and a GPU's memory."""
    process = launch_process(folder)
    try:
        # Ray's cancelling interrupts Python between two steps of it, and never a wait in the system.
        while (code := process.poll()) is None:
            time.sleep(_LOOK_S)
        return code
    finally:
        process.terminate()


class _Task:
    """A task as a process."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def poll(self) -> int | None:
        done, _ = ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            return int(ray.get(self._reference))
        except ray.exceptions.RayError:
            return 1

    def terminate(self) -> None:
        ray.cancel(self._reference, force=False)

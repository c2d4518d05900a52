"""Starts the processes that train one LoRA together, and ends them all when one is gone."""

import logging
import os
import sys
from typing import Final

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from deployments.training.lora.run_folder import UNFINISHED, RunFolder

_MODULE: Final = "deployments.training.lora"

log = logging.getLogger(__name__)


def train_together(run: RunFolder, device: str, processes: int) -> int:
    """Runs the training in `run` in so many processes of this machine, and waits for its end.

    On a GPU each, if `device` says so. Returns 0 if there is a LoRA, 1 if not. If one of them dies, or there are fewer
    GPUs, the training has failed.
    """
    if device != "cpu" and 0 < (gpus := torch.cuda.device_count()) < processes:
        run.change_progress(state="failed", error=f"there are {gpus} GPUs here for {processes} processes")
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Each would take all cores, and wait for the others' to let go of them.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=run.path.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", _MODULE, str(run.path))
    except ChildFailedError as error:
        log.error("%s", error)
        with run.held():
            if run.read_progress().state in UNFINISHED:
                run.change_progress(state="failed", error="one of its processes has died; the training's log has more")
        return 1
    return 0

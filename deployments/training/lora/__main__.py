"""`python -m deployments.training.lora FOLDER`: does the order in a training's folder, which also says how it went."""

import argparse
import ctypes
import logging
import signal
import sys
from pathlib import Path
from typing import Final

import torch

from deployments.engine.protocol.errors import EngineError
from deployments.training.lora.dataset import read_examples
from deployments.training.lora.launching import train_together
from deployments.training.lora.learning.processes import is_helper
from deployments.training.lora.order import read_order
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.training_run import help_to_train, train_lora

_PARENT_DEATH_SIGNAL: Final = 1

log = logging.getLogger(__name__)


def main() -> int:
    """Returns 0 if there is a LoRA, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m deployments.training.lora", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    _end_with_parent()
    run, order = RunFolder(folder), read_order(folder)
    settings = run.read_settings()
    if settings is None:
        log.error("there are no settings in the folder")
        return 1
    if is_helper():
        help_to_train(run, settings, order.spec, order.device)
        return 0
    if run.read_progress().state != "queued":
        log.error("the training does not wait to be run")
        return 1
    if order.processes > 1 and not torch.distributed.is_torchelastic_launched():
        return train_together(run, order.device, order.processes)
    try:
        examples = read_examples(order.source, settings, order.limits)
    except EngineError as error:
        run.change_progress(state="failed", error=error.message)
        return 1
    try:
        train_lora(run, examples, settings, order.spec, order.limits, device=order.device)
    except EngineError as error:
        log.error("%s", error.message)
        return 1
    return 0


def _end_with_parent() -> None:
    """Has Linux end this process when the one that watches it is gone: somebody else may go on in the folder then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    raise SystemExit(main())

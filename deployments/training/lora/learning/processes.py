"""The processes that train one LoRA together, each on a device of its own: what they share, and who decides.

The first one leads: it decides, measures the time and writes the files. All take the same steps, each with some of the
rows of a batch; their gradients are added up, so that every one has the weights that a single process would have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor, nn

from deployments.engine.models.components import pick_device
from deployments.engine.protocol.errors import InvalidParameter

DEVICES: Final = ("auto", "cpu", "cuda")

_LONGEST_WAIT: Final = timedelta(days=2)
"""Longer than any training: the others wait while the first one encodes. If it dies, torch's launcher ends them."""


_Decided = TypeVar("_Decided")

_PRECISIONS: Final = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingProcesses:
    """Says which of the processes this is, and lets it do things together with the others.

    `accelerator` is accelerate's own for this process, which has found the others by the environment that torch's
    launcher gives; without that there are none.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator: Final = accelerator
        self.count: Final = accelerator.num_processes

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def precision(self) -> torch.dtype:
        """The numbers that frozen networks compute in."""
        return _PRECISIONS[str(self.accelerator.mixed_precision)]

    @property
    def is_first(self) -> bool:
        """True in the one that decides and writes."""
        return bool(self.accelerator.is_main_process)

    def agree(self, decide: Callable[[], _Decided]) -> _Decided:
        """Returns in all of them what `decide` returns in the first, where alone it is called.

        What it raises is raised there alone; the launcher ends the others, who wait for it.
        """
        if self.count == 1:
            return decide()
        told = [decide() if self.is_first else None]
        broadcast_object_list(told)
        return told[0]  # type: ignore[return-value]  # Now it is the first's, everywhere.

    def share(self, rows: int, *, from_end: bool = False) -> slice:
        """Returns which of so many rows are this process's: every n-th, so that none has more than one more.

        `from_end` begins with the last process, to even out two kinds of rows.
        """
        own = self.accelerator.process_index
        return slice(self.count - 1 - own if from_end else own, rows, self.count)

    def add_gradients(self, weights: Sequence[nn.Parameter], losses: Tensor) -> Tensor:
        """Replaces each weight's gradient by the sum over all processes, and returns that of `losses` [N]."""
        if self.count == 1:
            return losses
        parts = [weight.grad.flatten() for weight in weights if weight.grad is not None]
        # One message for all: there are hundreds of small ones.
        summed = self.add_up(torch.cat([*parts, losses.to(parts[0])]))
        *sums, losses = summed.split([*map(len, parts), len(losses)])
        for weight, found in zip(weights, sums, strict=True):
            weight.grad = found.view_as(weight)
        return losses

    def add_up(self, tensor: Tensor) -> Tensor:
        """Returns the sum of all processes' tensors, which are alike."""
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

    def end(self) -> None:
        """Ends what they do together. Called by all, when no more steps are to come."""
        self.accelerator.end_training()


def is_helper() -> bool:
    """Returns True in a process that torch's launcher has started beside a first one."""
    return torch.distributed.is_torchelastic_launched() and os.environ["RANK"] != "0"


def join_processes(device: str) -> TrainingProcesses:
    """Returns this process with those that train with it: on a GPU each in bfloat16 (float16 where it has none), else
    on the CPU in float32.

    Raises InvalidParameter for an unknown device, ModelLoadError for a GPU that is not there.
    """
    if device not in DEVICES:
        raise InvalidParameter("device", f"must be one of {', '.join(DEVICES)}")
    waiting = [InitProcessGroupKwargs(timeout=_LONGEST_WAIT)]
    if pick_device(device).type == "cpu":
        return TrainingProcesses(Accelerator(cpu=True, mixed_precision="no", kwargs_handlers=waiting))
    # Older GPUs only emulate bfloat16.
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return TrainingProcesses(Accelerator(mixed_precision=precision, kwargs_handlers=waiting))

"""A replica that breaks on command. It is deployed in place of `ModelReplica`, which knows nothing of it."""

import os
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.clients.goldens import POISON
from deployments.engine.protocol.events import Event, Progress
from deployments.engine.protocol.request import Request
from deployments.model_deployment import ModelReplica

FAILING_STARTS = "failing-starts"


@dataclass(slots=True)
class NetworkFaults:
    """What the UNet has still to do wrong: run out of memory at calls of more than `oom_above` rows, `ooms` times; and
    answer NaN for its first row, `nans` times.
    """

    oom_above: int = 0
    ooms: int = 0
    nans: int = 0

    def arm(self, *, oom_above: int = 0, ooms: int = 0, nans: int = 0) -> None:
        """Begins anew."""
        self.oom_above, self.ooms, self.nans = oom_above, ooms, nans

    def before(self, _network: Any, inputs: tuple[Any, ...]) -> None:
        """A hook before the UNet's forward pass."""
        import torch

        if self.ooms and len(inputs[0]) > self.oom_above:
            self.ooms -= 1
            raise torch.OutOfMemoryError("injected")

    def after(self, _network: Any, _inputs: tuple[Any, ...], answer: tuple[Any, ...]) -> tuple[Any, ...]:
        """A hook behind it."""
        if not self.nans:
            return answer
        self.nans -= 1
        spoilt = answer[0].clone()
        spoilt[0] = float("nan")
        return (spoilt, *answer[1:])


class FaultyReplica(ModelReplica):
    """Works as its base until ordered to fail. `folder` holds what must outlive the process; see `faulty_replica`."""

    folder: ClassVar[str]

    def __init__(self, *told: Any, **options: Any) -> None:
        """Takes whatever its base takes."""
        fail_if_ordered(Path(self.folder))
        super().__init__(*told, **options)
        self._faults = NetworkFaults()
        engine = self._worker._engine
        assert engine is not None
        for model in engine.models.values():
            model.unet.register_forward_pre_hook(self._faults.before)
            model.unet.register_forward_hook(self._faults.after)

    async def generate(self, request: Request, version: str = "") -> AsyncGenerator[Event, None]:
        """The request's events. A poison request ends the process between two of its steps, as a segfault would."""
        poison = request.params.prompt.startswith(POISON)
        async with aclosing(super().generate(request, version)) as events:
            async for event in events:
                if poison and isinstance(event, Progress) and event.step > 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield event

    async def inject(self, faults: Mapping[str, int]) -> None:
        """The fields of the `NetworkFaults` that begin now."""
        self._faults.arm(**faults)

    async def state(self) -> dict[str, int]:
        """The process, and how many images it makes and holds back."""
        load = self._worker.load_now()
        return {"pid": os.getpid(), "running": load.running, "waiting": load.images_waiting}


def faulty_replica(folder: Path) -> type[FaultyReplica]:
    """Makes the class for one server. It is defined in a function so that Ray pickles it by value, with `folder`."""

    class Faulty(FaultyReplica):
        pass

    Faulty.folder = str(folder)
    return Faulty


def fail_starts(folder: Path, times: int) -> None:
    """Makes the next `times` constructors fail."""
    (folder / FAILING_STARTS).write_text(str(times))


def fail_if_ordered(folder: Path) -> None:
    """Raises RuntimeError, and counts down. Replicas start one after the other, so there is no race."""
    file = folder / FAILING_STARTS
    left = int(file.read_text()) if file.exists() else 0
    if left:
        file.write_text(str(left - 1))
        raise RuntimeError("injected: the constructor fails")

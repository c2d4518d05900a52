"""Checks finished images in small batches on threads of its own, and gives up on a check that takes too long."""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from deployments.engine.device.errors import is_out_of_memory, raise_if_sticky
from deployments.engine.device.metering import meter_call
from deployments.engine.protocol.errors import EngineError
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.request import Bucket
from deployments.engine.protocol.safety import Finding
from deployments.engine.safety.checkers import Checkers
from deployments.engine.scheduling.device import DeviceMemory
from deployments.engine.scheduling.memory_plan import MemoryPlan

log = logging.getLogger(__name__)

BATCH: Final = 8
"""The most images of one check."""

UNCHECKED: Final = Finding("unchecked")


@dataclass(frozen=True, slots=True)
class Check:
    """An image [H, W, 3] to be checked; `on_checked` gets what becomes of it, on a thread of the queue's."""

    image: ImageArray = field(repr=False)
    bucket: Bucket
    checkers: Checkers
    on_checked: Callable[[Finding | EngineError], object] = field(repr=False)

    def fits_beside(self, other: "Check") -> bool:
        return self.checkers is other.checkers and self.image.shape == other.image.shape


class CheckQueue:
    """Checks images in the order in which they come, up to BATCH of one model and size at once.

    The checkers run on one thread, and another waits for them no longer than the model's `timeout_s`. While a check
    hangs, all further ones fail at once: nothing can end a thread that hangs. Records in `plan` what checks take of
    `device`'s memory. `guard` runs the waiting thread's loop; it hears of a lost device.
    """

    def __init__(self, plan: MemoryPlan, device: DeviceMemory, guard: Callable[[Callable[[], object]], object]) -> None:
        self._plan, self._device = plan, device
        self._waiting: queue.SimpleQueue[Check | None] = queue.SimpleQueue()
        self._calls: queue.SimpleQueue[tuple[list[Check], Future[list[Finding]]] | None] = queue.SimpleQueue()
        self._set_aside: Check | None = None
        self._hanging: Future[list[Finding]] | None = None
        self._thread = threading.Thread(target=guard, args=(self._run,), name="safety", daemon=True)
        # A daemon: a class that hangs must not keep the process from ending.
        self._caller = threading.Thread(target=self._run_calls, name="safety-check", daemon=True)
        self._thread.start()
        self._caller.start()

    @property
    def is_alive(self) -> bool:
        """True while checks are answered, be it that they failed."""
        return self._thread.is_alive()

    def put(self, check: Check) -> None:
        """Queues an image."""
        self._waiting.put(check)

    def close(self) -> None:
        """Ends the threads, and drops what still waits."""
        self._waiting.put(None)
        self._calls.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        # No check is kept in a variable here: it would keep its model in memory while there is nothing to do.
        while self._answer_batch(self._next()):
            pass

    def _next(self) -> Check | None:
        if self._set_aside is None:
            return self._waiting.get()
        check, self._set_aside = self._set_aside, None
        return check

    def _answer_batch(self, first: Check | None) -> bool:
        """Answers `first` and the checks that fit beside it. Returns False at the end, which is None."""
        if first is None:
            return False
        batch = self._gather(first)
        for check, finding in zip(batch, self._check(batch), strict=True):
            check.on_checked(check.checkers.judge(finding))
        return True

    def _gather(self, first: Check) -> list[Check]:
        batch = [first]
        while len(batch) < BATCH and not self._waiting.empty():
            check = self._waiting.get()
            if check is None:
                self._waiting.put(None)
                break
            if not check.fits_beside(first):
                self._set_aside = check
                break
            batch.append(check)
        return batch

    def _check(self, batch: list[Check]) -> list[Finding]:
        """Returns what is found in the images of `batch`; where a check fails, they are unchecked."""
        if self._hanging is not None and not self._hanging.done():
            log.error("a safety check still hangs: %d image(s) stay unchecked", len(batch))
            return [UNCHECKED] * len(batch)
        self._hanging = None
        call: Future[list[Finding]] = Future()
        self._calls.put((batch, call))
        try:
            return call.result(timeout=batch[0].checkers.spec.timeout_s)
        except TimeoutError as error:
            raise_if_sticky(error)
            if not call.done():
                self._hanging = call
            log.exception("a safety check took too long: %d image(s) stay unchecked", len(batch))
            return [UNCHECKED] * len(batch)
        except Exception as error:
            raise_if_sticky(error)
            log.exception("a safety check failed: %d image(s) stay unchecked", len(batch))
            is_full = is_out_of_memory(error)
        if is_full and len(batch) > 1:
            self._device.release()
            return [finding for check in batch for finding in self._check([check])]
        return [UNCHECKED] * len(batch)

    def _run_calls(self) -> None:
        while (asked := self._calls.get()) is not None:
            batch, call = asked
            try:
                call.set_result(self._call_checkers(batch))
            # What ends a thread, a lost device for one, is raised where the answer is waited for.
            except BaseException as error:
                call.set_exception(error)
            del batch, call, asked

    def _call_checkers(self, batch: list[Check]) -> list[Finding]:
        """Meters a number of images that has not been measured."""
        bucket = batch[0].bucket
        with meter_call(self._plan, self._device, "check", bucket, len(batch)):
            return batch[0].checkers.check([check.image for check in batch])

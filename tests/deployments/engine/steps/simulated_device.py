"""A device that works beside the host, as a GPU does: what it is given is done only when somebody waits for it."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor

from deployments.engine.steps import decode, stepper

PATIENCE_S = 10.0


class SimulatedMark:
    """Reached when all stretches of work before it are done."""

    def __init__(self, before: "list[SimulatedStopwatch]") -> None:
        self.before = before

    @property
    def is_reached(self) -> bool:
        return all(stretch.done.is_set() for stretch in self.before)


class SimulatedStopwatch:
    def __init__(self, device: "SimulatedDevice", seconds: float) -> None:
        self.device, self.seconds = device, seconds
        self.done = threading.Event()

    def stop(self) -> None:
        self.device.take(self)

    @property
    def is_done(self) -> bool:
        return self.done.is_set()

    def wait(self) -> float:
        self.device.work_until(self)
        return self.seconds


class SimulatedDevice:
    """A stream of `seconds_each` seconds a stretch. `most` is how many stretches waited at once, `waits` counts calls
    that blocked the host, and `decoded_early` the decodings that began before what they needed was done.
    """

    def __init__(self, seconds_each: float = 7.0, error: Exception | None = None) -> None:
        self.queue: deque[SimulatedStopwatch] = deque()
        self.most = self.marks_waited_for = self.decoded_early = 0
        self._seconds, self._error = seconds_each, error

    def start_stopwatch(self) -> SimulatedStopwatch:
        return SimulatedStopwatch(self, self._seconds)

    def take(self, stretch: SimulatedStopwatch) -> None:
        self.queue.append(stretch)
        self.most = max(self.most, len(self.queue))

    def work_until(self, wanted: SimulatedStopwatch) -> None:
        if self._error is not None:
            raise self._error
        while not wanted.done.is_set():
            self.queue.popleft().done.set()

    def mark(self) -> SimulatedMark:
        return SimulatedMark(list(self.queue))

    def copy_to_host(self, tensor: Tensor) -> Tensor:
        return tensor


class SimulatedDecoding:
    """The decoder's stream: waits for marks as a device does, without the host's help."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device

    def start_stopwatch(self) -> SimulatedStopwatch:
        return DoneAtOnce(self._device, 0.25)

    def mark(self) -> SimulatedMark:
        return SimulatedMark([])

    @contextmanager
    def run_after(self, marks: Iterable[SimulatedMark]) -> Iterator[None]:
        for mark in marks:
            self._device.marks_waited_for += 1
            for stretch in mark.before:
                assert stretch.done.wait(PATIENCE_S)
        yield

    def copy_to_host(self, tensor: Tensor) -> Tensor:
        return tensor


class DoneAtOnce(SimulatedStopwatch):
    def stop(self) -> None:
        self.done.set()


def simulate(monkeypatch: pytest.MonkeyPatch, device: SimulatedDevice) -> None:
    """Has engines that are made from now on work with `device`."""
    monkeypatch.setattr(stepper, "current_stream", lambda _: device)
    monkeypatch.setattr(decode, "current_stream", lambda _: device)
    monkeypatch.setattr(decode, "new_stream", lambda _: SimulatedDecoding(device))

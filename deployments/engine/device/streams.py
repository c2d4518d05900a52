"""Streams of a device's work: the host runs ahead, and waits for marks in them. On a CPU all is done at once."""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

Mark = Any
"""A point in a stream, reached when all that the stream was given before is done: on CUDA an event, else None."""


class Stopwatch(Protocol):
    """Times what a stream is given from now on until `stop`."""

    def stop(self) -> None:
        """Ends what is timed."""

    @property
    def is_done(self) -> bool:
        """True if the device has done what is timed. Raises what the device raises."""

    def wait(self) -> float:
        """Waits until the device has done it, and returns the seconds it took. Raises what the device raises."""


class WorkStream(Protocol):
    """Work that a device does in the order in which it is given."""

    def start_stopwatch(self) -> Stopwatch:
        """Returns a running stopwatch."""

    def mark(self) -> Mark:
        """Returns a mark behind all that the stream has been given."""

    def run_after(self, marks: Iterable[Mark]) -> AbstractContextManager[None]:
        """Gives the stream what this thread computes in the context, to be begun once `marks` are reached."""

    def copy_to_host(self, tensor: Tensor) -> Tensor:
        """Returns a copy on the host that holds the values once all that the stream has been given is done."""


class HostStream:
    """The work of a CPU: done when the call returns."""

    def start_stopwatch(self) -> Stopwatch:
        return _HostStopwatch()

    def mark(self) -> Mark:
        return None

    def run_after(self, _marks: Iterable[Mark]) -> AbstractContextManager[None]:
        return nullcontext()

    def copy_to_host(self, tensor: Tensor) -> Tensor:
        return tensor


class CudaStream:
    """A CUDA stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def start_stopwatch(self) -> Stopwatch:
        return _CudaStopwatch(self._stream)

    def mark(self) -> Mark:
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    @contextmanager
    def run_after(self, marks: Iterable[Mark]) -> Iterator[None]:
        for mark in marks:
            self._stream.wait_event(mark)
        with torch.cuda.stream(self._stream):
            yield

    def copy_to_host(self, tensor: Tensor) -> Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


def current_stream(device: torch.device) -> WorkStream:
    """Returns the stream that this thread's computations on `device` go to."""
    return CudaStream(torch.cuda.current_stream(device)) if device.type == "cuda" else HostStream()


def new_stream(device: torch.device) -> WorkStream:
    """Returns a further stream, which the device works on beside the others."""
    return CudaStream(torch.cuda.Stream(device)) if device.type == "cuda" else HostStream()


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns `tensor`, which is on the host, on `device`. The host does not wait for what the device does."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # Only from pinned memory; the allocator keeps it until the copy is done.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class _HostStopwatch:
    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._seconds = 0.0

    def stop(self) -> None:
        self._seconds = time.perf_counter() - self._begun

    @property
    def is_done(self) -> bool:
        return True

    def wait(self) -> float:
        return self._seconds


class _CudaStopwatch:
    """A pair of events: what else the host or other streams do meanwhile does not count."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # Blocking ones leave the processor to other threads while this one waits.
        self._begin, self._end = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        self._begin.record(stream)

    def stop(self) -> None:
        self._end.record(self._stream)

    @property
    def is_done(self) -> bool:
        return bool(self._end.query())

    def wait(self) -> float:
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1000

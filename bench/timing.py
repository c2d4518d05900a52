"""Measures time for the benches: medians on a device that works asynchronously, percentiles, and a time limit."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from types import FrameType

import torch


def synchronize(device: torch.device) -> None:
    """Waits until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(call: Callable[[], object], device: torch.device, *, repeats: int = 10, warm_up: int = 3) -> float:
    """Returns the median of `repeats` calls in milliseconds, each from an idle device to an idle device."""
    for _ in range(warm_up):
        call()
    times: list[float] = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        times.append((time.perf_counter() - started) * 1000)
    return median(times)


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the smallest value that `percent` of all values do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


@contextmanager
def time_boxed(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block when it takes longer; main thread only. A timer that was set before goes on."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"took longer than {seconds:.0f} s")

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - started), 0.001))

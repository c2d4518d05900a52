"""Measures how fast a total grows."""

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final

OVER_S: Final = 10.0
"""Long enough to hold some UNet calls of a slow device, short beside the minutes in which replicas start."""


class RateMeter:
    """The growth of a total per second, over the last OVER_S seconds; 0 until it has been updated twice."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._readings: deque[tuple[float, float]] = deque()

    def update(self, total: float) -> float:
        """Records the total as it is now, and returns its growth per second."""
        now = self._clock()
        self._readings.append((now, total))
        while len(self._readings) > 2 and self._readings[1][0] <= now - OVER_S:
            self._readings.popleft()
        since, before = self._readings[0]
        return (total - before) / (now - since) if now > since else 0.0

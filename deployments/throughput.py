"""How fast a total grows."""

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final

OVER_S: Final = 10.0
"""Long enough to hold some UNet calls of a slow device, short beside the minutes in which replicas come."""


class RateMeter:
    """What a total has grown by a second, over the last OVER_S seconds; 0 until there are two looks at it."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._looks: deque[tuple[float, float]] = deque()

    def __call__(self, total: float) -> float:
        """Looks again."""
        now = self._clock()
        self._looks.append((now, total))
        while len(self._looks) > 2 and self._looks[1][0] <= now - OVER_S:
            self._looks.popleft()
        since, before = self._looks[0]
        return (total - before) / (now - since) if now > since else 0.0

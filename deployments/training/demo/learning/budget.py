"""A training run's budget is minutes, not iterations: machines differ, and the schedule must still come to its end."""

from __future__ import annotations

import math
import time


class Budget:
    """Counts the seconds trained, over all the times a run was resumed, against the minutes it may take."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.seconds = minutes * 60
        self._spent = spent
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds trained so far."""
        return self._spent + time.monotonic() - self._began

    @property
    def progress(self) -> float:
        """Share of the budget used, in [0, 1]."""
        return min(1.0, self.spent / self.seconds)

    @property
    def left(self) -> bool:
        """Whether there is time for another iteration."""
        return self.spent < self.seconds


def cosine(progress: float, peak: float, warm_up: float = 0.02, floor: float = 0.01) -> float:
    """Learning rate at `progress` in [0, 1]: a linear warm-up to `peak`, then half a cosine to `floor` * peak."""
    if progress < warm_up:
        return peak * max(progress / warm_up, 0.02)
    turned = 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
    return peak * (floor + (1 - floor) * turned)

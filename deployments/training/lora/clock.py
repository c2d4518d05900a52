"""How long a training may take, and whether somebody wants it to end. No torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from deployments.engine.protocol.errors import Cancelled, InvalidParameter
from deployments.training.lora.run_folder import RunFolder

_FOR_JUDGING: Final = 0.25
"""Judging may take this share of the minutes more."""

_TOLD_EVERY_S: Final = 1.0


class TrainingClock:
    """Counts the seconds of a training from its beginning, over all the times that it was resumed, without its judging.

    `run` is its folder, where the seconds until now are read; they are over after so many `minutes`.
    """

    def __init__(self, run: RunFolder, minutes: float) -> None:
        self._run, self.minutes = run, minutes
        self._began = time.monotonic() - run.read_progress().seconds
        self._told = -math.inf

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self._began

    @property
    def is_over(self) -> bool:
        """True if it is to learn no further."""
        return self.seconds >= 60 * self.minutes

    def check(self) -> None:
        """Raises Cancelled if somebody has asked for that."""
        if self._run.is_cancelled:
            raise Cancelled("the training was cancelled")

    def check_preparation(self) -> None:
        """Does the same before the first step, and writes the seconds down.

        Raises InvalidParameter if the time is over and nothing is learnt yet.
        """
        self.check()
        if self.is_over and not self._run.checkpoint.exists():
            raise InvalidParameter("max_minutes", f"the {self.minutes:g} minutes were over before the first step")
        if time.monotonic() - self._told > _TOLD_EVERY_S:
            self._told = time.monotonic()
            self._run.change_progress(seconds=round(self.seconds, 1))

    def judge(self) -> Callable[[], bool]:
        """Returns what says whether the time for judging, which begins now, is over."""
        end = time.monotonic() + _FOR_JUDGING * 60 * self.minutes
        return lambda: time.monotonic() >= end

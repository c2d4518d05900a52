"""Detects a loop that has stalled. How long an iteration may take is learnt from earlier ones. No torch."""

import time
from collections import deque
from collections.abc import Callable

# Far more than an iteration takes on a GPU, where tens of milliseconds are usual.
FLOOR_SECONDS = 30.0

# A full call of the largest images is this many times the work of the smallest, which may be all that was seen so far:
# on a CPU, 2 rows of 512 x 512 in warm-up, then 16 rows of 768 x 768.
GROWTH = 20.0

# Rare work, such as compiling a kernel, may come again and be as slow as it ever was.
SELDOM = 2.0

RECENT_ITERATIONS = 256


class Heartbeat:
    """Times the iterations of a loop; any thread may ask whether the current one has stalled.

    The limit is the largest of `FLOOR_SECONDS`, `GROWTH` times the longest of the last `RECENT_ITERATIONS` iterations,
    and `SELDOM` times the longest of all. The current iteration, which is the one judged, does not count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=RECENT_ITERATIONS)
        self._longest = 0.0
        self._begun = clock()
        self.limit = FLOOR_SECONDS

    def begin(self) -> None:
        """Starts an iteration."""
        self._begun = self._clock()

    def end(self) -> None:
        """Ends an iteration that did some work. A wait for work must not be counted: it would raise the limit."""
        took = self._clock() - self._begun
        self._recent.append(took)
        self._longest = max(self._longest, took)
        # Computed here and not on reading: the deque belongs to the loop's thread.
        self.limit = max(FLOOR_SECONDS, GROWTH * max(self._recent), SELDOM * self._longest)

    @property
    def is_stalled(self) -> bool:
        """True if the current iteration has taken longer than any should."""
        return self._clock() - self._begun > self.limit

"""Whether the engine's loop still turns. How long a turn may take is learnt from the turns before it. No torch here."""

import time
from collections import deque
from collections.abc import Callable

# Far more than a turn takes on a GPU, where tens of milliseconds are usual.
FLOOR_SECONDS = 30.0

# A full call of the largest pictures is that much work against the smallest call that may have been all there was: on
# a CPU, 2 rows of 512 x 512 in warm-up, then 16 rows of 768 x 768.
GROWTH = 20.0

# Work that happens seldom, like compiling a kernel, may be needed again, and may be as slow as it ever was.
SELDOM = 2.0

RECENT_TURNS = 256


class Heartbeat:
    """Beaten by the loop before each turn; asked from any thread.

    The limit is the largest of `FLOOR_SECONDS`, `GROWTH` times the longest of the last `RECENT_TURNS` turns, and
    `SELDOM` times the longest of all. A turn that is under way is not counted: it is what is judged.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=RECENT_TURNS)
        self._longest = 0.0
        self._begun = clock()
        self.limit = FLOOR_SECONDS

    def begin(self) -> None:
        """A turn begins."""
        self._begun = self._clock()

    def end(self) -> None:
        """The turn that began last is over, and it did some work: a wait for work says nothing about its length."""
        took = self._clock() - self._begun
        self._recent.append(took)
        self._longest = max(self._longest, took)
        # Here and not where it is asked for: the deque belongs to the loop's thread.
        self.limit = max(FLOOR_SECONDS, GROWTH * max(self._recent), SELDOM * self._longest)

    @property
    def stalled(self) -> bool:
        """Whether the turn under way has taken longer than any should."""
        return self._clock() - self._begun > self.limit

"""Decides whether a request that failed is sent again, and when; and how long all of its tries may take together."""

import random
from time import monotonic
from typing import Final

from serve_app.client.answers import DarkroomError, timed_out

FIRST_S: Final = 0.5
LONGEST_S: Final = 8.0
MOST_ASKED_S: Final = 120.0
"""A server that asks for a longer wait is not waited for."""

_BEING_MADE: Final = "idempotency_conflict"
_BEING_MADE_S: Final = 2.0


class Tries:
    """The tries of one call: at most `more` after the first, and all of them within `timeout_s` seconds.

    What is tried again carries a key, so that the server does it once all the same. While an earlier try is still being
    worked on, asking for its answer is not a try of its own.
    """

    def __init__(self, more: int, timeout_s: float) -> None:
        self._more, self._failed = more, 0
        self._deadline = monotonic() + timeout_s

    def left_s(self) -> float:
        """Returns the seconds that are left. Raises DarkroomError where none are."""
        left = self._deadline - monotonic()
        if left <= 0:
            raise timed_out()
        return left

    def wait_s(self, error: DarkroomError) -> float:
        """Returns the seconds until the next try, after one that ended with `error`. Raises `error` for no further one.

        A server's own wish goes before a doubling wait with jitter. What took too long is not begun again: the server
        has ended it with its connection.
        """
        if error.code == _BEING_MADE:
            seconds = error.retry_after or _BEING_MADE_S
            if seconds >= self._deadline - monotonic():
                raise timed_out() from error
            return seconds
        self._failed += 1
        if self._failed > self._more or not error.retryable or error.code == "timeout":
            raise error
        seconds = self._backoff_s() if error.retry_after is None else error.retry_after
        if seconds > MOST_ASKED_S or seconds >= self._deadline - monotonic():
            raise error
        return seconds

    def _backoff_s(self) -> float:
        return min(LONGEST_S, FIRST_S * 2.0 ** (self._failed - 1)) * random.uniform(0.5, 1.0)

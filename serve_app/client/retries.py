"""Decides whether a request that failed is sent again, and when."""

import random
from dataclasses import dataclass
from typing import Final

from serve_app.client.answers import DarkroomError

FIRST_S: Final = 0.5
LONGEST_S: Final = 8.0
MOST_ASKED_S: Final = 120.0
"""A server that asks for a longer wait is not waited for."""


@dataclass(frozen=True, slots=True)
class Retries:
    """At most `most` more tries. What is tried again carries a key, so that the server does it once all the same."""

    most: int = 2

    def wait_s(self, tried: int, error: DarkroomError) -> float | None:
        """Returns the seconds until the next try after `tried` failed ones; None for no further one.

        A server's own wish goes before a doubling wait with jitter.
        """
        if tried > self.most or not error.retryable:
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= MOST_ASKED_S else None
        return min(LONGEST_S, FIRST_S * 2.0 ** (tried - 1)) * random.uniform(0.5, 1.0)

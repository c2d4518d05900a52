"""Bounds what is learnt by image size: callers can ask for tens of thousands of sizes."""

from itertools import islice
from typing import Any, Final

MAX_ENTRIES: Final = 512

KEPT_ENTRIES: Final = 128
"""The first entries, learnt in the warm-up, are never evicted."""


def evict_oldest(learnt: dict[Any, Any], key: Any) -> None:
    """Evicts the oldest entry, apart from the first ones, if adding `key` would exceed the limit."""
    if key not in learnt and len(learnt) >= MAX_ENTRIES:
        learnt.pop(next(islice(learnt, KEPT_ENTRIES, None)))

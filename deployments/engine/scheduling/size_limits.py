"""A bound on what is learnt by size: callers choose from tens of thousands of sizes, and each is looked through."""

from itertools import islice
from typing import Any, Final

MOST: Final = 512

FIRST: Final = 128
"""What was learnt first, at the warm-up, stays."""


def make_room(learnt: dict[Any, Any], key: Any) -> None:
    """Lets go of what was learnt longest ago, but for the first, where `key` would be one too many."""
    if key not in learnt and len(learnt) >= MOST:
        learnt.pop(next(islice(learnt, FIRST, None)))

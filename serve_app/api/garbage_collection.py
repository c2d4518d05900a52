"""How Python's garbage collector behaves in a process that serves: it walks through what is new, and seldom.

A full collection stops every thread, and takes as long as there are objects: a tenth of a second for what is imported
alone. A request of many values would have several of them.
"""

import gc
from typing import Final

_THRESHOLDS: Final = (50_000, 20, 50)


def tune_garbage_collector() -> None:
    """To be called once, when all is there that will stay: that much is never looked through again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)

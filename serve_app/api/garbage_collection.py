"""Tunes Python's garbage collector for a process that serves: it runs seldom, and looks at new objects only.

A full collection stops every thread for as long as there are objects to visit: a tenth of a second for the imported
modules alone. A request with many values would cause several of them.
"""

import gc
from typing import Final

_THRESHOLDS: Final = (50_000, 20, 50)


def tune_garbage_collector() -> None:
    """Exempts all present objects from collection and raises the thresholds. Call it once, when start-up is over."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)

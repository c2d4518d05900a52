"""Returns freed memory to the operating system, which glibc's allocator does not do by itself.

It keeps what large uploads and answers took at their peak, in one arena per thread.
"""

import asyncio
import ctypes
from collections.abc import Callable
from typing import Final

LARGE_BYTES: Final = 1024 * 1024
"""Smaller blocks are not worth the milliseconds."""

# What has just ended frees the rest meanwhile, and a burst of requests is trimmed once.
_DELAY_S: Final = 1.0


def _find_malloc_trim() -> Callable[[int], int] | None:
    """Returns glibc's `malloc_trim`; other allocators neither have it nor need it."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


_TRIM: Final = _find_malloc_trim()

_MMAP_THRESHOLD: Final = -3
"""`M_MMAP_THRESHOLD` of glibc's malloc.h."""


def mmap_large_blocks() -> None:
    """Makes every large block of this process return to the system as soon as it is freed.

    glibc would raise its limit with the first, and keep the next ones in its arenas, from whose middle nothing can be
    returned. For processes without tensors: new pages for each of them would slow an engine down.
    """
    if _TRIM is not None:
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, LARGE_BYTES)


def trim_memory() -> None:
    """Returns all free whole pages to the system. Other threads run meanwhile."""
    if _TRIM is not None:
        _TRIM(0)


class FreedMemory:
    """Trims memory a moment after something large has ended. Use it on one event loop."""

    def __init__(self, delay_s: float = _DELAY_S) -> None:
        self._delay_s = delay_s
        self._due: asyncio.TimerHandle | None = None

    def schedule(self) -> None:
        """Schedules a trim in a moment; whatever ends until then is covered by it."""
        loop = asyncio.get_running_loop()
        if self._due is None or self._due.when() < loop.time():
            self._due = loop.call_later(self._delay_s, lambda: loop.run_in_executor(None, trim_memory))

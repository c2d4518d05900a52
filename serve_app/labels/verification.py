"""Tells what a picture says of itself, off the event loop."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from deployments.process_memory.freed_memory import FreedMemory
from serve_app.labels.labeller import Labeller
from serve_app.labels.reading import FoundLabels

# Each may hold several copies of a picture of 16 million pixels.
_THREADS: Final = 2


class Verifier:
    """Reads the labels of untrusted files, on threads of its own."""

    def __init__(self, labeller: Labeller) -> None:
        self._reader = labeller.reader
        self._freed = FreedMemory()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="verify")

    async def verify(self, file: bytes, field: str) -> FoundLabels:
        """Returns what is found in `file`. Raises InvalidParameter, naming `field`, unless it is a picture.

        Cancelled, it leaves out what has not begun.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._reader.read, file, field)
        finally:
            # A small file may have been a large picture.
            self._freed.schedule()

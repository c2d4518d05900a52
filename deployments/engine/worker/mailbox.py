"""Carries one request's events from the engine's thread to their reader on an event loop."""

import asyncio
import logging
import threading
from collections import deque

from deployments.engine.protocol.events import Event, Progress

log = logging.getLogger(__name__)


class Mailbox:
    """The unread events of one request, on their way to one asyncio reader.

    A `Progress` that has not been read is replaced by the next one, so a slow reader costs no memory.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, progress_interval_s: float | None = 0.0) -> None:
        """A `Progress` is passed on no sooner than `progress_interval_s` seconds after the event before it.

        If another event comes in the meantime, it is left out. Where the interval is None, none is passed on.
        """
        self._loop = loop
        self._interval_s = progress_interval_s
        self._read_at = loop.time()
        self._events: deque[Event] = deque()
        self._lock = threading.Lock()
        self._ready = asyncio.Event()

    def put(self, event: Event) -> None:
        """Adds an event, on any thread; never blocks for long. Does nothing once the reader's loop has closed."""
        if isinstance(event, Progress) and self._interval_s is None:
            return
        with self._lock:
            if self._events and isinstance(self._events[-1], Progress):
                if isinstance(event, Progress):
                    self._events[-1] = event
                    return
                if self._interval_s:
                    self._events.pop()
            self._events.append(event)
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:
            log.debug("an event came after its reader's loop had closed")

    async def get(self) -> Event:
        """Waits for the oldest unread event, and returns it."""
        while True:
            with self._lock:
                early_s = self._seconds_too_early()
                if self._events and early_s <= 0:
                    self._read_at = self._loop.time()
                    return self._events.popleft()
                self._ready.clear()
            try:
                async with asyncio.timeout(early_s if early_s > 0 else None):
                    await self._ready.wait()
            except TimeoutError:
                continue

    def _seconds_too_early(self) -> float:
        """Returns the seconds for which the oldest unread event, if it is a `Progress`, has to wait."""
        if not self._interval_s or not self._events or not isinstance(self._events[0], Progress):
            return 0.0
        return self._read_at + self._interval_s - self._loop.time()

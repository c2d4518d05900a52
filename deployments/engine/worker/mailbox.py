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

    def __init__(self, loop: asyncio.AbstractEventLoop, progress: bool = True) -> None:
        """Without `progress`, no `Progress` is passed on."""
        self._loop = loop
        self._progress = progress
        self._events: deque[Event] = deque()
        self._lock = threading.Lock()
        self._ready = asyncio.Event()

    def put(self, event: Event) -> None:
        """Adds an event, on any thread; never blocks for long. Does nothing once the reader's loop has closed."""
        if isinstance(event, Progress) and not self._progress:
            return
        with self._lock:
            unread = self._events[-1] if self._events else None
            if isinstance(event, Progress) and isinstance(unread, Progress):
                self._events[-1] = event
                return
            self._events.append(event)
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:
            log.debug("an event came after its reader's loop had closed")

    async def get(self) -> Event:
        """Waits for the oldest unread event, and returns it."""
        while True:
            with self._lock:
                if self._events:
                    return self._events.popleft()
                self._ready.clear()
            await self._ready.wait()

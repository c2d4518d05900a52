"""Runs equal requests that come at the same time once, and sends the events to all of them (single-flight).

A run belongs to none of its requests: it goes on until the last of them has left. Where it is lost on the way (its
engine stopped, the request that began it was cancelled, or something unexpected broke), only the request that began
it is told so; the others begin anew.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import aclosing
from contextvars import Context
from dataclasses import replace
from functools import partial

from deployments.engine.protocol.errors import Cancelled
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, Progress
from serve_app.backends.replays import DeliveredEvents, loss_of
from serve_app.tasks import cancel_and_wait

log = logging.getLogger(__name__)

Make = Callable[[], AsyncGenerator[Event, None]]
"""Begins the work; closing what it gives ends it."""


class RequestCoalescer:
    """The runs under way, by their work. Used on one event loop. `joined` counts the requests that found one."""

    def __init__(self) -> None:
        self.joined = 0
        self._runs: dict[Hashable, SharedRun] = {}

    async def follow(self, request_id: str, work: Hashable | None, make: Make) -> AsyncGenerator[Event, None]:
        """Yields the events of `work`, which `make` begins unless it is under way; None is work that cannot be shared.

        No event comes twice. Closing this ends the work, unless others follow it.
        """
        delivered, ended = DeliveredEvents(), False
        # The third time each for itself: nobody waits for strangers' work to be lost again and again.
        for number, key in enumerate((work, work, None)):
            source, joined = self._join(key, make)
            self.joined += joined and not number
            try:
                async with aclosing(source) as events:
                    async for event in events:
                        if joined and _is_end_of_other(event):
                            break
                        ended = isinstance(event, Finished | Failed)
                        if delivered.is_news(event):
                            yield replace(_mark_shared(event, joined), request_id=request_id)
            except Exception:
                if not joined:
                    raise
            if ended or not joined:
                return
            log.warning("request %s: the work that it had joined was lost; it begins anew", request_id)

    def _join(self, work: Hashable | None, make: Make) -> tuple[AsyncGenerator[Event, None], bool]:
        if work is None:
            return make(), False
        run, joined = self._runs.get(work), True
        if run is None:
            joined = False
            run = self._runs[work] = SharedRun(make(), partial(self._over, work))
        return run.events(), joined

    def _over(self, work: Hashable, run: "SharedRun") -> None:
        if self._runs.get(work) is run:
            del self._runs[work]


class SharedRun:
    """One run, as a task of its own, and its events so far. `over` is called at its end."""

    def __init__(self, made: AsyncGenerator[Event, None], over: Callable[["SharedRun"], None]) -> None:
        self._events: list[Event] = []
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._ended = False
        self._listeners = 0
        self._over = over
        # Not in its first caller's context: when that one's client leaves, Ray cancels all that was begun in it.
        self._task = asyncio.get_running_loop().create_task(self._run(made), context=Context())

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields all events, past and future. A `Progress` that was not read gives way to the next.

        Raises what broke the run. When the last listener leaves, the run is ended at once.
        """
        self._listeners += 1
        read = 0
        try:
            while True:
                news = self._news
                while read < len(self._events):
                    event = self._events[read]
                    read += 1
                    if not (isinstance(event, Progress) and self._is_superseded(read)):
                        yield event
                if self._ended:
                    break
                await news.wait()
            if self._error is not None:
                raise self._error
        finally:
            self._listeners -= 1
            if not self._listeners:
                # Nobody may join any more, not even while it ends.
                self._over(self)
                await cancel_and_wait(self._task)

    def _is_superseded(self, after: int) -> bool:
        return after < len(self._events) and isinstance(self._events[after], Progress)

    async def _run(self, made: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(made):
                async for event in made:
                    self._events.append(event)
                    if isinstance(event, Finished | Failed):
                        # Who comes now is too late for it, and must not be told of somebody else's loss.
                        self._over(self)
                    self._wake()
        except Exception as error:
            self._error = error
        finally:
            self._ended = True
            self._over(self)
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _is_end_of_other(event: Event) -> bool:
    return loss_of(event) is not None or (isinstance(event, Failed) and isinstance(event.error, Cancelled))


def _mark_shared(event: Event, joined: bool) -> Event:
    """Marks what one request began as shared for the others."""
    if joined and isinstance(event, Accepted) and event.source == "made":
        return replace(event, source="shared")
    return event

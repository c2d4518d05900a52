"""Work that several want at the same time is done once, and all of them hear of it.

The work belongs to nobody: whoever leaves, it goes on until nobody is left. Where it is lost on the way (its engine
stopped, whoever it was begun for has cancelled it, or something unexpected broke), only the one that it was begun for
is told so; the others begin anew.
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
    """Who waits for what. Used on one event loop. `joined` counts the requests that found their work begun."""

    def __init__(self) -> None:
        self.joined = 0
        self._flights: dict[Hashable, SharedRun] = {}

    async def follow(self, request_id: str, work: Hashable | None, make: Make) -> AsyncGenerator[Event, None]:
        """The events of `work`, which `make` begins unless it is under way; None is work that cannot be shared.

        Nothing is told twice. Closing this ends the work, unless others follow it.
        """
        delivered, ended = DeliveredEvents(), False
        # The third time each for itself: nobody waits for strangers' work to be lost again and again.
        for number, key in enumerate((work, work, None)):
            source, joined = self._board(key, make)
            self.joined += joined and not number
            try:
                async with aclosing(source) as events:
                    async for event in events:
                        if joined and _is_anothers_end(event):
                            break
                        ended = isinstance(event, Finished | Failed)
                        if delivered.is_news(event):
                            yield replace(_as_heard(event, joined), request_id=request_id)
            except Exception:
                if not joined:
                    raise
            if ended or not joined:
                return
            log.warning("request %s: the work that it had joined was lost; it begins anew", request_id)

    def _board(self, work: Hashable | None, make: Make) -> tuple[AsyncGenerator[Event, None], bool]:
        if work is None:
            return make(), False
        run, joined = self._flights.get(work), True
        if run is None:
            joined = False
            run = self._flights[work] = SharedRun(make(), partial(self._over, work))
        return run.events(), joined

    def _over(self, work: Hashable, run: "SharedRun") -> None:
        if self._flights.get(work) is run:
            del self._flights[work]


class SharedRun:
    """One piece of work under way, as a task of its own, and what it has told so far. `over` is called at its end."""

    def __init__(self, made: AsyncGenerator[Event, None], over: Callable[["SharedRun"], None]) -> None:
        self._told: list[Event] = []
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._landed = False
        self._listeners = 0
        self._over = over
        # Not in its first caller's context: when that one's client leaves, Ray cancels all that was begun in it.
        self._task = asyncio.get_running_loop().create_task(self._fly(made), context=Context())

    async def events(self) -> AsyncGenerator[Event, None]:
        """All that has been told and will be. A `Progress` that was not read gives way to the next.

        Raises what the work has broken with. When the last listener leaves, the work is ended, then and there.
        """
        self._listeners += 1
        heard = 0
        try:
            while True:
                news = self._news
                while heard < len(self._told):
                    event = self._told[heard]
                    heard += 1
                    if not (isinstance(event, Progress) and self._superseded(heard)):
                        yield event
                if self._landed:
                    break
                await news.wait()
            if self._error is not None:
                raise self._error
        finally:
            self._listeners -= 1
            if not self._listeners:
                # Nobody may come on board any more, not even while it ends.
                self._over(self)
                await cancel_and_wait(self._task)

    def _superseded(self, after: int) -> bool:
        return after < len(self._told) and isinstance(self._told[after], Progress)

    async def _fly(self, made: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(made):
                async for event in made:
                    self._told.append(event)
                    if isinstance(event, Finished | Failed):
                        # Whoever comes now is too late for it, and must not be told of somebody else's loss.
                        self._over(self)
                    self._wake()
        except Exception as error:
            self._error = error
        finally:
            self._landed = True
            self._over(self)
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _is_anothers_end(event: Event) -> bool:
    return loss_of(event) is not None or (isinstance(event, Failed) and isinstance(event.error, Cancelled))


def _as_heard(event: Event, joined: bool) -> Event:
    """What is begun for one is shared for the others."""
    if joined and isinstance(event, Accepted) and event.source == "made":
        return replace(event, source="shared")
    return event

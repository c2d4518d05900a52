"""Requests that can be ended by their names, by whoever knows them: their callers' streams end with `Cancelled`."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from deployments.engine.protocol.errors import Cancelled
from deployments.engine.protocol.events import Event, Failed, Finished
from deployments.engine.protocol.request import Request, is_part_of
from serve_app.tasks import cancel_and_wait

CancelSignal = asyncio.Future[None]
"""Done once the work that it stands for shall end."""


class RunningRequests:
    """What runs in this process, by tenant and name. Used on one event loop.

    It is the caller's wait that is ended, wherever the request is: in an engine, on the way to one, or waiting for one
    to come back. Its generator is closed as if its caller had left, so an engine that has it hears of that.
    """

    def __init__(self) -> None:
        self._running: dict[CancelSignal, tuple[str, str]] = {}

    @contextmanager
    def track(self, name: str, tenant: str) -> Iterator[CancelSignal]:
        """As long as this lasts, `cancel` by that name gives the word."""
        word: CancelSignal = asyncio.get_running_loop().create_future()
        self._running[word] = (name, tenant)
        try:
            yield word
        finally:
            del self._running[word]

    def cancel(self, name: str, tenant: str) -> bool:
        """Gives the word to all of the tenant's that have this name, or are part of it. False where there is none."""
        found = [word for word, (own, whose) in self._running.items() if whose == tenant and is_part_of(own, name)]
        for word in found:
            if not word.done():
                word.set_result(None)
        return bool(found)

    async def watch(self, request: Request, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """`events` of `request` up to their end, or to a `Failed` when it is cancelled. Closing this closes them."""
        with self.track(request.name, request.tenant) as word:
            async with aclosing(events):
                while (event := await _next_or_cancelled(word, request, events)) is not None:
                    yield event
                    if isinstance(event, Finished | Failed):
                        return


async def _next_or_cancelled(word: CancelSignal, request: Request, events: AsyncGenerator[Event, None]) -> Event | None:
    """The next event; None where there is none any more."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        await asyncio.wait((coming, word), return_when=asyncio.FIRST_COMPLETED)
        return coming.result() if coming.done() else Failed(request.id, Cancelled())
    finally:
        # Over before `events` is closed: a generator cannot be closed while it runs.
        await cancel_and_wait(coming)

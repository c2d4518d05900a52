"""Cancels requests by name: their callers' streams end with `Cancelled`."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from deployments.engine.protocol.errors import Cancelled
from deployments.engine.protocol.events import Event, Failed, Finished
from deployments.engine.protocol.request import Request, is_part_of
from serve_app.tasks import cancel_and_wait

CancelSignal = asyncio.Future[None]
"""Done once the work that it stands for is to end."""


class RunningRequests:
    """The requests running in this process, by tenant and name. Used on one event loop.

    A cancellation ends the caller's wait, wherever the request is: in an engine, or on its way to or from one. It
    closes the request's generator as a disconnect would, so that an engine that has it is informed.
    """

    def __init__(self) -> None:
        self._running: dict[CancelSignal, tuple[str, str]] = {}

    @contextmanager
    def track(self, name: str, tenant: str) -> Iterator[CancelSignal]:
        """Registers a request for the duration of the context: `cancel` with that name sets the signal."""
        signal: CancelSignal = asyncio.get_running_loop().create_future()
        self._running[signal] = (name, tenant)
        try:
            yield signal
        finally:
            del self._running[signal]

    def cancel(self, name: str, tenant: str) -> bool:
        """Signals the tenant's requests that have this name, or are part of it. Returns False if there are none."""
        found = [
            signal
            for signal, (own_name, own_tenant) in self._running.items()
            if own_tenant == tenant and is_part_of(own_name, name)
        ]
        for signal in found:
            if not signal.done():
                signal.set_result(None)
        return bool(found)

    async def watch(self, request: Request, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """Yields `events` of `request` to their end, or to a `Failed` if it is cancelled. Closing this closes them."""
        with self.track(request.name, request.tenant) as signal:
            async with aclosing(events):
                while (event := await _next_or_cancelled(signal, request, events)) is not None:
                    yield event
                    if isinstance(event, Finished | Failed):
                        return


async def _next_or_cancelled(
    signal: CancelSignal, request: Request, events: AsyncGenerator[Event, None]
) -> Event | None:
    """Returns the next event, or `Failed` if the signal comes first; None at the end of `events`."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        await asyncio.wait((coming, signal), return_when=asyncio.FIRST_COMPLETED)
        return coming.result() if coming.done() else Failed(request.id, Cancelled())
    finally:
        # Awaited before `events` is closed: a generator cannot be closed while it runs.
        await cancel_and_wait(coming)

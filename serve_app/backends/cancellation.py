"""Ends running requests by their names: their callers' streams end with `Cancelled`."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from deployments.engine.protocol.errors import Cancelled
from deployments.engine.protocol.events import Event, Failed, Finished
from deployments.engine.protocol.request import Request, is_part_of
from serve_app.backends.layer import Layer
from serve_app.backends.protocol import Backend
from serve_app.tasks import cancel_and_wait

CancelSignal = asyncio.Future[None]
"""Done once the work that it belongs to is to end."""


class RunningRequests:
    """The running requests of this process, by tenant and name. Used on one event loop.

    Cancelling ends the caller's wait, wherever the request is: in an engine, on the way to one, or waiting for one to
    come back. The generator is closed as if the caller had left, so an engine that has the request frees its rows.
    """

    def __init__(self) -> None:
        self._running: dict[CancelSignal, tuple[str, str]] = {}

    @contextmanager
    def track(self, name: str, tenant: str) -> Iterator[CancelSignal]:
        """Registers a name for as long as this lasts, and gives the signal that `cancel` sets."""
        signal: CancelSignal = asyncio.get_running_loop().create_future()
        self._running[signal] = (name, tenant)
        try:
            yield signal
        finally:
            del self._running[signal]

    def cancel(self, name: str, tenant: str) -> bool:
        """Ends all of the tenant's that have this name, or are part of it. False where there is none."""
        found = [signal for signal, (own, whose) in self._running.items() if whose == tenant and is_part_of(own, name)]
        for signal in found:
            if not signal.done():
                signal.set_result(None)
        return bool(found)


class CancellableBackend(Layer):
    """Ends requests by their names, here and in the backends behind it."""

    def __init__(self, inner: Backend, running: RunningRequests) -> None:
        super().__init__(inner)
        self._running = running

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of `inner` up to their end, or to a `Failed` when the request is cancelled."""
        with self._running.track(request.name, request.tenant) as signal:
            async with aclosing(self.inner.generate(request)) as events:
                while (event := await _next_or_cancelled(signal, request, events)) is not None:
                    yield event
                    if isinstance(event, Finished | Failed):
                        return

    async def cancel(self, name: str, tenant: str) -> bool:
        return self._running.cancel(name, tenant) or await self.inner.cancel(name, tenant)


async def _next_or_cancelled(
    signal: CancelSignal, request: Request, events: AsyncGenerator[Event, None]
) -> Event | None:
    """Returns the next event, a `Failed` where the request is cancelled first, or None at the end."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        await asyncio.wait((coming, signal), return_when=asyncio.FIRST_COMPLETED)
        return coming.result() if coming.done() else Failed(request.id, Cancelled())
    finally:
        # Over before `events` is closed: a generator cannot be closed while it runs.
        await cancel_and_wait(coming)

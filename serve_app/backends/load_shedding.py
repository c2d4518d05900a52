"""Refuses requests for a deployment that has just said it is full, without asking it again.

Under a flood most requests are refused, and each trip to a replica and back costs milliseconds of the machine that the
engine then lacks. A refusal is therefore believed for a moment, which is short compared with the time until a place is
free, so that no place stays free for want of asking.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.events import Event, Failed
from deployments.engine.protocol.request import Request
from serve_app.backends.layer import Layer
from serve_app.backends.protocol import Backend

BELIEVED_S: Final = 0.25

REMEMBERED: Final = 10_000
"""Tenants; a flood of names must not become one of memory."""


class LoadShedder:
    """Remembers, by tenant, that a deployment has just been full. Used on one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full: dict[str, tuple[float, Overloaded]] = {}

    def record(self, tenant: str, event: Event) -> None:
        """Learns from an event that an engine has sent."""
        if isinstance(event, Failed) and isinstance(event.error, Overloaded) and len(self._full) < REMEMBERED:
            believed = min(BELIEVED_S, event.error.retry_after or BELIEVED_S)
            self._full[tenant] = (self._clock() + believed, event.error)

    def check(self, tenant: str) -> None:
        """Raises Overloaded where an engine has just refused this tenant."""
        if not self._full:
            return
        now = self._clock()
        self._full = {name: said for name, said in self._full.items() if said[0] > now}
        if tenant in self._full:
            _, error = self._full[tenant]
            raise Overloaded(error.message, error.retry_after)


class SheddingBackend(Layer):
    """Refuses, without asking `inner`, what it would refuse as well."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self._shedder = LoadShedder()

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        try:
            self._shedder.check(request.tenant)
        except Overloaded as error:
            yield Failed(request.id, error)
            return
        async with aclosing(self.inner.generate(request)) as events:
            async for event in events:
                self._shedder.record(request.tenant, event)
                yield event

"""Counts requests, their ends and how long they took."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from deployments.engine.protocol.errors import EngineError, Overloaded
from deployments.engine.protocol.events import Event, Failed
from deployments.engine.protocol.request import Request
from serve_app.backends.layer import Layer
from serve_app.backends.protocol import Backend
from serve_app.observability.request_stats import Statistics

WaitForPlace = Callable[[Request, Overloaded], Awaitable[Request]]
"""Waits after a refusal and returns the request to ask with again. Raises EngineError to end the request."""


class CountingBackend(Layer):
    """Records every request of `inner` in `statistics`."""

    def __init__(self, inner: Backend, statistics: Statistics) -> None:
        super().__init__(inner)
        self._statistics = statistics

    def generate(self, request: Request, wait: WaitForPlace | None = None) -> AsyncGenerator[Event, None]:
        """The events of `inner`. With `wait`, where engines are full, it is asked again when that returns.

        All attempts are one request, which is counted by its end and timed from its last attempt: a caller who can wait
        says nothing about how well the others are served.
        """
        if wait is None:
            return self._statistics.watch(request.model, self.inner.generate(request))
        attempts = _Attempts(self.inner, request, wait, self._statistics.clock)
        return self._statistics.watch(request.model, attempts.events(), lambda: attempts.begun)


class _Attempts:
    """Asks `inner` for one request until it is not refused for want of a place; `begun` is when it last asked."""

    def __init__(self, inner: Backend, request: Request, wait: WaitForPlace, clock: Callable[[], float]) -> None:
        self._inner, self._request, self._wait, self._clock = inner, request, wait, clock
        self.begun = clock()

    async def events(self) -> AsyncGenerator[Event, None]:
        while True:
            refusal: Overloaded | None = None
            async with aclosing(self._inner.generate(self._request)) as events:
                async for event in events:
                    if isinstance(event, Failed) and isinstance(event.error, Overloaded):
                        refusal = event.error
                    else:
                        yield event
            if refusal is None:
                return
            try:
                self._request = await self._wait(self._request, refusal)
            except EngineError as error:
                yield Failed(self._request.id, error)
                return
            self.begun = self._clock()

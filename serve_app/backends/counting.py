"""Counts requests, their ends and how long they took."""

from collections.abc import AsyncGenerator

from deployments.engine.protocol.events import Event
from deployments.engine.protocol.request import Request
from serve_app.backends.layer import Layer
from serve_app.backends.protocol import Backend
from serve_app.observability.request_stats import Statistics


class CountingBackend(Layer):
    """Records every request of `inner` in `statistics`."""

    def __init__(self, inner: Backend, statistics: Statistics) -> None:
        super().__init__(inner)
        self._statistics = statistics

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        return self._statistics.watch(request.model, self.inner.generate(request))

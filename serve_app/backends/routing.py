"""Sends each request to the deployment that hosts its model."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Final

from deployments.engine.protocol.events import Event
from deployments.engine.protocol.inputs import Enlargement
from deployments.engine.protocol.report import TokenCount
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from serve_app.backends.load_shedding import SheddingBackend
from serve_app.backends.protocol import Backend, BackendReport
from serve_app.backends.redis_quarantine import RedisQuarantine
from serve_app.backends.replays import ReplayingBackend

REPORT_AGE_S: Final = 1.0


def route_to(deployments: Sequence[Backend], quarantine: RedisQuarantine | None = None) -> "RoutingBackend":
    """Makes the backend over `deployments`: what happens to a request on its way to each, from the outside in."""
    return RoutingBackend([SheddingBackend(ReplayingBackend(each, quarantine)) for each in deployments])


class RoutingBackend:
    """A `Backend` over several, each with models of its own. Used on one event loop."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = tuple(backends)
        self._by_model = {spec.name: backend for backend in backends for spec in backend.models}
        self._models = tuple(spec for backend in backends for spec in backend.models)
        self._report: asyncio.Task[BackendReport] | None = None
        self._report_made = -REPORT_AGE_S

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The models of all backends, in their order."""
        return self._models

    @property
    def counts(self) -> Mapping[str, int]:
        """The sums of all backends' counts."""
        return sum((Counter(backend.counts) for backend in self._backends), Counter[str]())

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        return self._by_model[request.model].generate(request)

    async def cancel(self, name: str, tenant: str) -> bool:
        """Ends the tenant's requests of this name in every backend."""
        return any(await asyncio.gather(*(backend.cancel(name, tenant) for backend in self._backends)))

    async def forget_states(self) -> None:
        """Has the engines of every backend do so."""
        await asyncio.gather(*(backend.forget_states() for backend in self._backends))

    async def count_tokens(self, request: Request) -> tuple[TokenCount, TokenCount]:
        return await self._by_model[request.model].count_tokens(request)

    async def make_hints(self, request: Request) -> tuple[bytes, ...]:
        return await self._by_model[request.model].make_hints(request)

    async def enlarge(self, enlargement: Enlargement) -> bytes:
        """Asks the default model's deployment: all have the same upscalers."""
        return await self._backends[0].enlarge(enlargement)

    async def report(self) -> BackendReport:
        """The reports of all engines, at most a second old."""
        if self._report is None or (self._report.done() and time.monotonic() - self._report_made > REPORT_AGE_S):
            self._report_made = time.monotonic()
            self._report = asyncio.create_task(self._fetch_reports())
        return await asyncio.shield(self._report)

    async def close(self) -> None:
        await asyncio.gather(*(backend.close() for backend in self._backends))

    async def _fetch_reports(self) -> BackendReport:
        reports = await asyncio.gather(*(backend.report() for backend in self._backends))
        return BackendReport(tuple(engine for report in reports for engine in report.engines))

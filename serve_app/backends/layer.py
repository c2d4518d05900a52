"""A backend around another one: the shape of everything between the service and the engines."""

from collections.abc import AsyncGenerator, Mapping

from deployments.engine.protocol.events import Event
from deployments.engine.protocol.inputs import Enlargement
from deployments.engine.protocol.report import TokenCount
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from serve_app.backends.protocol import Backend, BackendReport


class Layer:
    """Passes everything on to `inner`, until a subclass overrides it."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        return self.inner.models

    @property
    def counts(self) -> Mapping[str, int]:
        return self.inner.counts

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        return self.inner.generate(request)

    async def cancel(self, name: str, tenant: str) -> bool:
        return await self.inner.cancel(name, tenant)

    async def forget_states(self) -> None:
        await self.inner.forget_states()

    async def count_tokens(self, request: Request) -> tuple[TokenCount, TokenCount]:
        return await self.inner.count_tokens(request)

    async def make_hints(self, request: Request) -> tuple[bytes, ...]:
        return await self.inner.make_hints(request)

    async def enlarge(self, enlargement: Enlargement) -> bytes:
        return await self.inner.enlarge(enlargement)

    async def report(self) -> BackendReport:
        return await self.inner.report()

    async def close(self) -> None:
        await self.inner.close()

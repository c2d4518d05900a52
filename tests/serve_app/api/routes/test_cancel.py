"""A request can be cancelled by its id, by its own tenant only, any number of times."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from deployments.engine.protocol.errors import Cancelled
from deployments.engine.protocol.events import Accepted, Failed
from serve_app.api.application import create_api
from serve_app.api.exchange import exchange_of
from serve_app.api.principal import Principal
from serve_app.client import parse_events
from serve_app.service import DiffusionService
from tests.serve_app.fakes import EVENTS, FOREVER, PATH, FakeBackend, http, slow, until

CUP = {"prompt": "a red cup", "seed": 1}
REQUESTS = "/ads/v2/diffusion/requests"


class Named:
    """The application, as it is behind a door that knows its callers: here they say themselves who they are."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tenant = dict(scope.get("headers", ())).get(b"x-tenant", b"").decode()
        exchange_of(scope).principal = Principal(tenant=tenant)
        await self.app(scope, receive, send)


@pytest.fixture
async def client(service: DiffusionService) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(service)
    async with http(Named(app)) as client:
        yield client
    await app.state.jobs.stop()


async def cancel(client: httpx.AsyncClient, name: str, tenant: str = "") -> bool:
    answer = await client.delete(f"{REQUESTS}/{name}", headers={"x-tenant": tenant})
    assert answer.status_code == 200
    assert answer.json()["id"] == name
    cancelled: bool = answer.json()["cancelled"]
    return cancelled


@pytest.mark.parametrize("accept", ["application/json", "image/png"])
async def test_the_callers_own_id_cancels_and_the_caller_is_told(
    client: httpx.AsyncClient, backend: FakeBackend, accept: str
) -> None:
    backend.script = slow
    headers = {"x-request-id": "mine", "Accept": accept}
    asked = asyncio.create_task(client.post(PATH, json=CUP, headers=headers))
    await until(lambda: backend.running == 1)
    assert await cancel(client, "mine")
    answer = await asked
    assert (answer.status_code, answer.json()["error"]["code"]) == (499, "cancelled")
    assert answer.json()["retryable"] is False
    assert (backend.running, backend.cancelled) == (0, ["mine"])
    assert not await cancel(client, "mine")


async def test_a_stream_says_its_id_first_and_ends_with_an_error(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = slow
    asked = asyncio.create_task(client.post(PATH, json=CUP, headers=EVENTS | {"x-request-id": "mine"}))
    await until(lambda: backend.running == 1)
    assert await cancel(client, "mine")
    events = list(parse_events([*(await asked).text.splitlines(), ""]))
    assert events[0].data["id"] == "mine"
    assert (events[-1].name, events[-1].data["error"]["code"]) == ("error", "cancelled")
    assert backend.running == 0


async def test_a_request_that_still_waits_for_an_engine_can_be_cancelled(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = lambda _: [FOREVER]
    asked = asyncio.create_task(client.post(PATH, json=CUP, headers={"x-request-id": "mine"}))
    await until(lambda: backend.running == 1)
    assert await cancel(client, "mine")
    assert (await asked).status_code == 499


async def test_others_requests_are_not_ones_own_to_cancel(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = slow
    headers = {"x-request-id": "same"}
    mine, theirs = (
        asyncio.create_task(client.post(PATH, json=CUP, headers=headers | {"x-tenant": tenant}))
        for tenant in ("me", "them")
    )
    await until(lambda: backend.running == 2)
    assert not await cancel(client, "same", "a stranger")
    assert await cancel(client, "same", "me")
    assert (await mine).status_code == 499
    assert (backend.running, theirs.done()) == (1, False)
    assert await cancel(client, "same", "them")
    await theirs


async def test_a_name_that_begins_alike_is_another_name(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = slow
    asked = asyncio.create_task(client.post(PATH, json=CUP, headers={"x-request-id": "trace.1"}))
    await until(lambda: backend.running == 1)
    assert not await cancel(client, "trace")
    assert not await cancel(client, "trace.")
    assert await cancel(client, "trace.1")
    await asked


async def test_what_is_not_here_is_looked_for_in_the_engines(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """It may have come through another ingress process."""
    assert not await cancel(client, "elsewhere", "me")
    assert backend.asked_to_cancel == [("elsewhere", "me")]


async def test_a_cancelled_request_counts_as_that(
    client: httpx.AsyncClient, backend: FakeBackend, service: DiffusionService
) -> None:
    backend.script = lambda request: [Accepted(request.id, 0), Failed(request.id, Cancelled())]
    assert (await client.post(PATH, json=CUP)).status_code == 499
    stats = await service.get_generation_stats()
    assert (stats["cancelled"], stats["refused"], stats["broken"], stats["active"]) == (1, 0, 0, 0)

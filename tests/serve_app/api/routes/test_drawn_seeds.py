"""A seed that was drawn is no wish of the caller's, wherever it is drawn: `cache` does what it does without a seed."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.config.sections import CacheConfig
from serve_app.service import DiffusionService
from tests.serve_app.api.routes.test_style_transfers import BATCH, ask, ended
from tests.serve_app.fakes import STYLED, TINY, FakeBackend, http


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(models=(TINY, STYLED))


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(DiffusionService(backend, cache=ResultCache(CacheConfig())))
    async with http(app) as client:
        yield client
    await app.state.jobs.stop()


async def results(client: httpx.AsyncClient, body: dict[str, Any], later: bool) -> list[dict[str, Any]]:
    answer = await client.post(BATCH, json=body, headers={"Prefer": "respond-async"} if later else {})
    entries: list[dict[str, Any]] = (await ended(client, answer) if later else answer.json())["results"]
    return entries


@pytest.mark.parametrize("later", [False, True], ids=["batch", "job"])
@pytest.mark.parametrize("expand", [{}, {"expand": {"variants": 1}}], ids=["plain", "variants"])
@pytest.mark.parametrize("cache", ["reuse", "similar"])
async def test_entries_without_a_seed_take_what_was_made_before(
    client: httpx.AsyncClient, backend: FakeBackend, cache: str, expand: dict[str, Any], later: bool
) -> None:
    body = {"requests": [{"prompt": "a red cup", "cache": cache}], **expand}
    first, again = [await results(client, body, later) for _ in range(2)]
    assert [entry["status"] for entry in first + again] == [200, 200], first + again
    assert again[0]["images"][0]["seed"] == first[0]["images"][0]["seed"]
    assert [request.seed_drawn for request in backend.asked] == [True]


@pytest.mark.parametrize("later", [False, True], ids=["batch", "job"])
@pytest.mark.parametrize("expand", [{}, {"expand": {"variants": 1}}], ids=["plain", "variants"])
async def test_a_seed_that_was_given_is_the_callers_own(
    client: httpx.AsyncClient, backend: FakeBackend, expand: dict[str, Any], later: bool
) -> None:
    requests = [{"prompt": "a cup", "seed": 1, "cache": cache} for cache in ("similar", "default")]
    similar, default = await results(client, {"requests": requests, **expand}, later)
    assert (similar["status"], default["status"]) == (422, 200)
    assert similar["errors"][0]["pointer"] == "#/requests/0/seed"
    assert [request.seed_drawn for request in backend.asked] == [False]


async def test_a_set_that_was_restyled_before_is_not_restyled_again(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for _ in range(2):
        assert (await ended(client, await ask(client, cache="reuse")))["succeeded"] == 3
    assert len(backend.asked) == 3
    assert len({request.params.seed for request in backend.asked}) == 1

"""On every path, HEAD is GET without its body, and OPTIONS lists the path's methods."""

import asyncio
from typing import Final

import httpx
import pytest

from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.fakes import PATH, FakeBackend, slow, until

BASE: Final = "/ads/v2/diffusion"
GETS: Final = (
    "/livez",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/docs/start.js",
    "/v1/models",
    "/v1/models/tiny",
    "/v1/models/maker/tiny",
    *(f"{BASE}/{name}" for name in ("models", "samplers", "styles", "stats", "health", "jobs")),
)
POSTS: Final = (
    "/v1/images/generations",
    "/v1/images/edits",
    *(f"{BASE}/{name}" for name in ("text-to-image", "image-to-image", "inpaint", "controlnet", "batch-generate")),
)


@pytest.mark.parametrize("path", GETS)
async def test_head_is_get_without_its_body(path: str, client: httpx.AsyncClient) -> None:
    got, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    own = {"x-request-id", "server-timing", "content-length"}
    assert {name: head.headers[name] for name in head.headers if name not in own} == {
        name: got.headers[name] for name in got.headers if name not in own
    }
    # Figures change meanwhile, and with them the length.
    assert ("content-length" in head.headers) == ("content-length" in got.headers)
    options = await client.options(path)
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


async def test_head_of_a_stream_ends(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = slow
    body = {"requests": [{"prompt": "a cup"}]}
    job = (await client.post(f"{BASE}/batch-generate", json=body, headers={"Prefer": "respond-async"})).json()
    await until(lambda: backend.running == 1)
    async with asyncio.timeout(5):
        head = await client.head(f"{job['url']}/events")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")
    options = await client.options(job["url"])
    assert options.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
    assert (await client.delete(job["url"])).status_code == 200


@pytest.mark.parametrize("path", POSTS)
async def test_options_of_a_door_asks_for_nothing(path: str, client: httpx.AsyncClient, backend: FakeBackend) -> None:
    options = await client.options(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, "OPTIONS, POST", b"")
    refused = await client.head(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert not backend.asked


async def test_a_wrong_method_is_told_every_right_one(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{BASE}/jobs/SECRET")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET, HEAD"
    assert (await client.options("/SECRET")).status_code == 404
    assert (await client.put(PATH, content=b"x" * 100_000)).headers["connection"] == "close"

"""Jobs that clients wait for: they end with their callers, and a lost picture costs no other."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from serve_app.client import AsyncDarkroomClient, DarkroomClient

RUNNING = {"id": "7", "state": "running", "results": []}
IMAGE = {"index": 0, "seed": 3, "format": "png", "width": 64, "height": 64, "url": "/gone"}
WAITS: list[Callable[[Any], Any]] = [
    lambda client: client.batch([{"prompt": "a cup"}]),
    lambda client: client.restyle([b"picture"], [b"look"]),
]


class Server:
    """Works on one job for ever."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.polled = asyncio.Event()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.path))
        if request.method == "GET":
            self.polled.set()
        return httpx.Response(200, json=RUNNING)


@pytest.mark.parametrize("wait", WAITS, ids=["batch", "restyle"])
async def test_a_call_that_is_cancelled_cancels_its_job(wait: Callable[[AsyncDarkroomClient], Any]) -> None:
    server = Server()
    async with AsyncDarkroomClient("http://test", transport=httpx.MockTransport(server)) as client:
        waiting = asyncio.ensure_future(wait(client))
        await server.polled.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert server.asked[-1] == ("DELETE", "/ads/v2/diffusion/jobs/7")


@pytest.mark.parametrize("wait", WAITS, ids=["batch", "restyle"])
def test_ctrl_c_cancels_the_job_that_is_waited_for(
    wait: Callable[[DarkroomClient], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("serve_app.client.client.sleep", interrupted)
    server = Server()
    transport = httpx.MockTransport(server)
    with DarkroomClient("http://test", transport=transport) as client, pytest.raises(KeyboardInterrupt):
        wait(client)
    assert server.asked[-1] == ("DELETE", "/ads/v2/diffusion/jobs/7")


async def test_a_picture_that_is_gone_costs_no_other() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        gone = request.url.path == "/gone"
        return httpx.Response(404 if gone else 200, content=b"pixels")

    job = {"results": [{"index": 0, "images": [IMAGE | {"url": "/first"}, IMAGE, IMAGE | {"url": "/last"}]}]}
    transport = httpx.MockTransport(handle)
    with DarkroomClient("http://test", transport=transport) as client:
        (entry,) = client.entries_of(job)
    async with AsyncDarkroomClient("http://test", transport=transport) as other:
        (same,) = await other.entries_of(job)
    for each in (entry, same):
        assert [image.data for image in each.images] == [b"pixels"] * 2
        assert each.error is not None
        assert each.error.status == 404

"""Many clients disconnect at any moment and in any way: nothing is logged, and nothing is left behind."""

import asyncio
import contextlib
import gc
import json
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message

from deployments.engine.protocol.events import Accepted, Event, Finished, Progress
from deployments.engine.protocol.request import Request
from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.config.sections import CacheConfig
from serve_app.service import DiffusionService
from tests.serve_app.fakes import PATH, TIMINGS, FakeBackend, image, until

CLIENTS = 60
BATCH = "/ads/v2/diffusion/batch-generate"


class Unhurried(FakeBackend):
    """Takes a moment for everything, also for its end: a replica hears of a departure later than the ingress does."""

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        self.running += 1
        try:
            await asyncio.sleep(0.01 * random.random())
            yield Accepted(request.id, 0)
            for step in range(50):
                await asyncio.sleep(0.005)
                yield Progress(request.id, step, 20)
            for index in range(request.params.num_images):
                yield image(request, index)
            yield Finished(request.id, TIMINGS)
        finally:
            try:
                await asyncio.sleep(0.002)
            finally:
                self.running -= 1


class Leaver:
    """A client at the ASGI seam that reads slowly, and hangs up after a while."""

    def __init__(self, body: Any, stays_s: float, chance: random.Random) -> None:
        self.chance = chance
        self._incoming = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        self._leaves_at = asyncio.get_running_loop().time() + stays_s

    async def receive(self) -> Message:
        if self._incoming:
            return self._incoming.pop()
        await asyncio.sleep(self._leaves_at - asyncio.get_running_loop().time())
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.chance.random() < 0.3:
            await asyncio.sleep(0.002)


def scope_of(path: str, accept: str) -> dict[str, Any]:
    headers = {"content-type": "application/json", "accept": accept}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "scheme": "http",
        "root_path": "",
        "server": ("test", 80),
        "client": ("test", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }


async def visit(app: FastAPI, number: int, chance: random.Random) -> None:
    """One client. Some are cancelled as well, once or twice, as Ray does with whatever it began for them."""
    path, accept = chance.choice(
        [(PATH, "text/event-stream"), (PATH, "application/json"), (BATCH, "text/event-stream"), (BATCH, "*/*")]
    )
    # Some of them ask for the same, and join each other.
    asked = {"prompt": f"a cup {number % 7}", "seed": 1}
    body = asked if path == PATH else {"requests": [asked, {**asked, "seed": 2 + number % 3}]}
    caller = Leaver(body, chance.uniform(0.0, 0.5), chance)
    task = asyncio.create_task(app(scope_of(path, accept), caller.receive, caller.send))
    if chance.random() < 0.6:
        await asyncio.sleep(max(0.0, caller._leaves_at - asyncio.get_running_loop().time()))
        for _ in range(chance.randint(1, 3)):
            task.cancel()
            await asyncio.sleep(chance.choice((0, 0, 0.0005, 0.001)))
    with contextlib.suppress(asyncio.CancelledError):
        await task


class Turning(FakeBackend):
    """Every event, and the end, takes some turns of the loop."""

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        self.running += 1
        try:
            events: list[Event] = [Accepted(request.id, 0), Progress(request.id, 1, 2), image(request, 0)]
            for event in events:
                await turns(3)
                yield event
            yield Finished(request.id, TIMINGS)
        finally:
            try:
                await turns(3)
            finally:
                self.running -= 1


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[list[dict[str, Any]]]:
    """What the loop complains about: exceptions that nobody took, generators that nobody closed."""
    loop, heard = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    try:
        yield heard
    finally:
        loop.set_exception_handler(None)


@pytest.mark.parametrize("seed", range(2))
async def test_clients_that_leave_leave_nothing_behind(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    backend = Unhurried()
    service = DiffusionService(backend, cache=ResultCache(CacheConfig(memory_bytes=2**20)))
    app = create_api(service)
    chance = random.Random(seed)
    before = asyncio.all_tasks()
    with caplog.at_level(logging.WARNING):
        async with listening() as heard:
            await asyncio.gather(*(visit(app, number, random.Random(chance.random())) for number in range(CLIENTS)))
            await until(lambda: backend.running == 0)
            gc.collect()
            await until(lambda: asyncio.all_tasks() == before)
    assert [record.getMessage() for record in caplog.records] == []
    assert heard == []
    assert service.running._running == {}
    assert service._cache._coalescer._runs == {}


@pytest.mark.parametrize("path", [PATH, BATCH])
@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
@pytest.mark.parametrize("again", [None, 1, 2, 4])
async def test_there_is_no_turn_of_the_loop_at_which_a_departure_leaves_anything_behind(
    path: str, accept: str, again: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Turning()
    service = DiffusionService(backend, cache=ResultCache(CacheConfig(memory_bytes=2**20)))
    app = create_api(service)
    asked = {"prompt": "a cup", "width": 64, "height": 64}
    body = asked if path == PATH else {"requests": [asked]}
    before, moment, done = asyncio.all_tasks(), 0, False
    with caplog.at_level(logging.WARNING):
        async with listening() as heard:
            while not done:
                caller = Leaver(body, 60, random.Random(0))
                task = asyncio.create_task(app(scope_of(path, accept), caller.receive, nobody_hears))
                await turns(moment)
                done = task.done()
                task.cancel()
                if again is not None:
                    await turns(again)
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                moment += 1
            del task, caller
            gc.collect()
            await until(lambda: backend.running == 0 and asyncio.all_tasks() == before)
    assert moment > 20
    assert [record.getMessage() for record in caplog.records] == []
    assert heard == []
    assert service.running._running == {}
    assert service._cache._coalescer._runs == {}


async def nobody_hears(_: Message) -> None:
    await asyncio.sleep(0)

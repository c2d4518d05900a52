"""A job may be said to be over more than once, by one process or by several: its callers hear the same, if anything."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench.redis_server import RedisServer
from tests.serve_app.callbacks.ingresses import IngressWithCallbacks, callbacks_config, ingress
from tests.serve_app.callbacks.receivers import Receiver, receiver
from tests.serve_app.fakes import slow, until


@pytest.fixture
async def heard() -> AsyncIterator[Receiver]:
    async with receiver() as running:
        yield running


@pytest.fixture(params=["memory", "redis"])
def redis(request: pytest.FixtureRequest) -> RedisServer | None:
    return None if request.param == "memory" else request.getfixturevalue("shared")


@pytest.fixture
def shared(server: RedisServer) -> RedisServer:
    with server.client() as client:
        client.flushall()
    return server


async def end_again(here: IngressWithCallbacks, job: dict[str, Any]) -> None:
    """Says once more that the job is over, as a process does that has taken it up; a moment later, so that it shows."""
    await asyncio.sleep(0.01)
    found = await here.app.state.jobs.find(job["id"], "")
    await here.callbacks.ended(found)
    await asyncio.sleep(0.3)


async def test_a_webhook_that_was_heard_is_not_sent_again(
    redis: RedisServer | None, heard: Receiver, tmp_path: Path
) -> None:
    async with ingress(callbacks_config(tmp_path, heard), redis) as here:
        job = await here.submit(webhook_url=heard.url(), upload_urls=[[heard.url("/put")]])
        done = await here.settled(job)
        assert len(heard.received) == 3
        await end_again(here, job)
        assert len(heard.received) == 3
        assert await here.job(job) == done


async def test_a_webhook_that_was_not_heard_yet_stays_as_it_was(
    redis: RedisServer | None, heard: Receiver, tmp_path: Path
) -> None:
    async with ingress(callbacks_config(tmp_path, heard, first_retry_s=1, longest_retry_s=1), redis) as here:
        heard.behaves("/hook", 500)
        job = await here.submit(webhook_url=heard.url())
        await until(lambda: len(heard.received) == 1)
        await end_again(here, job)
        await here.settled(job)
        first, second = heard.received
        assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_job_that_was_over_when_its_ingress_died_is_left_as_it_was(
    cancelled: bool, shared: RedisServer, heard: Receiver, tmp_path: Path
) -> None:
    config = callbacks_config(tmp_path, heard)
    async with ingress(config, shared, "a") as first:
        store = first.app.state.jobs._store
        store.finish = finishes_nothing
        if cancelled:
            first.backend.script = slow
        job = await first.submit(webhook_url=heard.url())
        if cancelled:
            await until(lambda: first.backend.running == 1)
            await first.client.delete(job["url"])
        await until(lambda: len(heard.received) == 1)
        before = await first.settled(job)
        store.release = finishes_nothing
        await first.stop()
        async with ingress(config, shared, "b") as second:
            await asyncio.sleep(1.5)
            after = await second.settled(job)
            assert {key: after[key] for key in ("state", "finished_at", "webhooks")} == {
                key: before[key] for key in ("state", "finished_at", "webhooks")
            }
            assert len(heard.received) == 1
            with shared.client() as client:
                assert client.zcard("darkroom:jobs:unfinished") == 0


async def finishes_nothing(*_: object) -> None:
    return None

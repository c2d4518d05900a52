"""Messages are claimed by one process at a time, outlive it in Redis, and are kept here while Redis is gone."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench.redis_server import RedisServer
from serve_app.callbacks.message import Message
from serve_app.callbacks.outbox import MemoryOutbox, Outbox
from serve_app.callbacks.redis_outbox import RedisOutbox
from serve_app.jobs.callbacks import Settlement
from serve_app.store.redis import RedisTier
from tests.serve_app.callbacks.ingresses import callbacks_config, ingress
from tests.serve_app.callbacks.receivers import Receiver, receiver
from tests.serve_app.fakes import until
from tests.serve_app.redis_servers import redis_at, wire_to

HOLD_S = 30.0
DONE = Settlement(done=True, attempts=1)


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    with server.client() as client:
        client.flushall()
    return server


@pytest.fixture(params=["memory", "redis"])
async def outbox(request: pytest.FixtureRequest) -> AsyncIterator[Outbox]:
    if request.param == "memory":
        yield MemoryOutbox(4, 100)
        return
    tier = RedisTier(redis_at(request.getfixturevalue("redis").url, timeout_ms=1000))
    yield RedisOutbox(tier, 4, 100)
    await tier.close()


def message(name: str, **more: Any) -> Message:
    fields = {"id": name, "kind": "upload", "job": "j" * 32, "tenant": "", "place": "0/0", "url": "https://a/"}
    return Message.model_validate(fields | {"created": 1.0} | more)


async def test_a_message_is_claimed_by_one_at_a_time(outbox: Outbox) -> None:
    await outbox.add([message("a"), message("b")])
    first = await outbox.claim("upload", 1, HOLD_S)
    second = await outbox.claim("upload", 5, HOLD_S)
    assert {claim.message.id for claim in (*first, *second)} == {"a", "b"}
    assert await outbox.claim("upload", 5, HOLD_S) == []
    assert await outbox.claim("webhook", 5, HOLD_S) == []


async def test_the_same_message_is_kept_once(outbox: Outbox) -> None:
    await outbox.add([message("a", body="first")])
    await outbox.add([message("a", body="second")])
    (claim,) = await outbox.claim("upload", 5, HOLD_S)
    assert claim.message.body == "first"


async def test_a_claim_that_has_run_out_is_anybodys(outbox: Outbox) -> None:
    await outbox.add([message("a")])
    (lost,) = await outbox.claim("upload", 5, 0.001)
    await asyncio.sleep(0.01)
    (claim,) = await outbox.claim("upload", 5, HOLD_S)
    await outbox.postpone(lost, lost.message, 0.0)
    assert await outbox.claim("upload", 5, HOLD_S) == [], "the first one may not give away what is the second's"
    await outbox.postpone(claim, claim.message.model_copy(update={"attempts": 1}), 0.0)
    (again,) = await outbox.claim("upload", 5, HOLD_S)
    assert again.message.attempts == 1


async def test_what_is_postponed_is_not_due_before(outbox: Outbox) -> None:
    await outbox.add([message("a")])
    (claim,) = await outbox.claim("upload", 5, HOLD_S)
    await outbox.postpone(claim, claim.message, 60.0)
    assert await outbox.claim("upload", 5, HOLD_S) == []


async def test_what_was_removed_is_gone(outbox: Outbox) -> None:
    await outbox.add([message("a")])
    (claim,) = await outbox.claim("upload", 5, 0.001)
    await outbox.remove(claim)
    await asyncio.sleep(0.01)
    assert await outbox.claim("upload", 5, HOLD_S) == []


async def test_there_is_room_for_some_only(outbox: Outbox) -> None:
    assert list(await outbox.add([message(name) for name in "abcdef"])) == ["e", "f"]
    assert list(await outbox.add([message("a"), message("g")])) == ["g"]
    (claim,) = await outbox.claim("upload", 1, HOLD_S)
    await outbox.remove(claim)
    assert list(await outbox.add([message("h")])) == []


async def test_uploads_are_counted_once_each(outbox: Outbox) -> None:
    job = "j" * 32
    assert not (await outbox.settle(message("a"), DONE)).complete
    assert not (await outbox.settle(message("a"), DONE)).complete
    assert not (await outbox.expect(job, 2)).complete
    assert not (await outbox.settle(message("w", kind="webhook", place="job.failed"), DONE)).complete
    assert (await outbox.settle(message("b", place="0/1"), DONE.model_copy(update={"done": False}))).complete
    found = await outbox.settlements(job)
    assert {place: each.done for place, each in found.items()} == {"0/0": True, "0/1": False, "job.failed": True}


async def test_what_others_write_into_redis_is_not_sent(redis: RedisServer) -> None:
    tier = RedisTier(redis_at(redis.url, timeout_ms=1000))
    outbox = RedisOutbox(tier, 10, 100)
    await outbox.add([message("a"), message("b")])
    with redis.client() as client:
        (queue, messages) = outbox._queue("upload")
        genuine = client.hget(messages, "a")
        client.hset(messages, mapping={"b": b"nonsense", "c": genuine, "d": b"x" * 100_000})
        client.zadd(queue, {"c": 0, "d": 0, "e": 0, "x" * 500: 0})
        client.hset(outbox._parts("j" * 32)[0], "0/0", b"nonsense")
    claims = await outbox.claim("upload", 10, HOLD_S)
    assert [claim.message.id for claim in claims] == ["a"]
    assert await outbox.settlements("j" * 32) == {}
    assert tier.damaged == 3
    with redis.client() as client:
        client.delete(queue)
        client.set(queue, "of another type")
    await outbox.add([message("f")])
    assert [claim.message.id for claim in await outbox.claim("upload", 10, HOLD_S)] == ["f"]
    await tier.close()


@pytest.fixture
async def heard() -> AsyncIterator[Receiver]:
    async with receiver() as running:
        yield running


async def test_another_ingress_sends_what_a_dead_one_had_begun(
    redis: RedisServer, heard: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.callbacks.deliverer._MARGIN_S", 0.2)
    config = callbacks_config(tmp_path, heard, timeout_s=2.0, upload_timeout_s=2.0)
    async with ingress(config, redis, "a") as first, ingress(config, redis, "b") as second:
        for deliverer in second.callbacks._deliverers.values():
            await deliverer.stop()
        heard.behaves("/hook", "hang")
        heard.behaves("/put", "hang")
        job = await first.submit(webhook_url=heard.url(), upload_urls=[[heard.url("/put")]])
        await until(lambda: heard.at_a_time == 2)
        await first.die()
        second.callbacks.start()
        done = await second.settled(job)
        assert {each["event"]: each["state"] for each in done["webhooks"]} == {
            "job.succeeded": "delivered",
            "job.uploaded": "delivered",
        }
        assert done["uploads"]["uploaded"] == 1
    ended = [each for each in heard.at("/hook") if b"job.succeeded" in each.body]
    assert len({each.headers["webhook-id"] for each in ended}) == 1
    assert len(ended) == 2


async def test_an_ingress_that_stops_leaves_its_messages_to_others_at_once(
    redis: RedisServer, heard: Receiver, tmp_path: Path
) -> None:
    config = callbacks_config(tmp_path, heard, timeout_s=2.0, upload_timeout_s=2.0)
    async with ingress(config, redis, "a") as first, ingress(config, redis, "b") as second:
        for deliverer in second.callbacks._deliverers.values():
            await deliverer.stop()
        heard.behaves("/hook", "hang")
        job = await first.submit(webhook_url=heard.url())
        await until(lambda: heard.at_a_time == 1)
        await first.stop()
        second.callbacks.start()
        assert (await second.settled(job))["webhooks"][0]["state"] == "delivered"


async def test_many_ingresses_send_each_message_once(redis: RedisServer, heard: Receiver, tmp_path: Path) -> None:
    config = callbacks_config(tmp_path, heard)
    async with ingress(config, redis, "a") as first, ingress(config, redis, "b") as second:
        jobs = [await each.submit(webhook_url=heard.url()) for each in (first, second) * 8]
        for job in jobs:
            await second.settled(job)
    assert len(heard.received) == len({each.headers["webhook-id"] for each in heard.received}) == len(jobs)


async def test_messages_are_kept_here_while_redis_is_gone(redis: RedisServer, heard: Receiver, tmp_path: Path) -> None:
    async with wire_to(redis) as wire:
        tier = RedisTier(redis_at(wire.url, timeout_ms=300))
        outbox = RedisOutbox(tier, 10, 100)
        await wire.turn("refuse")
        await outbox.add([message("a")])
        assert outbox.waiting_here() == 1
        (claim,) = await outbox.claim("upload", 5, HOLD_S)
        await outbox.settle(claim.message, DONE)
        await outbox.remove(claim)
        assert outbox.waiting_here() == 0
        assert (await outbox.settlements("j" * 32))["0/0"].done
        await tier.close()

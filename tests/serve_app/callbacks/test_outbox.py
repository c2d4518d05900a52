"""Messages are claimed by one process at a time, outlive it in Redis, and are kept here while Redis is gone."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.redis_server import RedisServer
from serve_app.callbacks.message import Claim, Kind, Message
from serve_app.callbacks.outbox import MemoryOutbox, Outbox
from serve_app.callbacks.redis_outbox import RedisOutbox
from serve_app.callbacks.slots import Slots
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
    """With room for four messages."""
    async with outbox_for(4, request) as made:
        yield made


@pytest.fixture(params=["memory", "redis"])
async def large(request: pytest.FixtureRequest) -> AsyncIterator[Outbox]:
    async with outbox_for(10_000, request) as made:
        yield made


@asynccontextmanager
async def outbox_for(waiting: int, request: pytest.FixtureRequest) -> AsyncIterator[Outbox]:
    if request.param == "memory":
        yield MemoryOutbox(waiting, 100)
        return
    tier = RedisTier(redis_at(request.getfixturevalue("redis").url, timeout_ms=1000))
    yield RedisOutbox(tier, waiting, 100)
    await tier.close()


def message(name: str, **more: Any) -> Message:
    fields = {"id": name, "kind": "upload", "job": "j" * 32, "tenant": "", "place": "0/0", "url": "https://a/"}
    return Message.model_validate(fields | {"created": 1.0} | more)


async def claims_of(outbox: Outbox, most: int, hold_s: float = HOLD_S, kind: Kind = "upload") -> list[Claim]:
    """Claims as a process does that has `most` slots, all free."""
    return await outbox.claim(kind, Slots(most, most), hold_s)


async def test_a_message_is_claimed_by_one_at_a_time(outbox: Outbox) -> None:
    await outbox.add([message("a"), message("b")])
    first = await claims_of(outbox, 1)
    second = await claims_of(outbox, 5)
    assert {claim.message.id for claim in (*first, *second)} == {"a", "b"}
    assert await claims_of(outbox, 5) == []
    assert await claims_of(outbox, 5, kind="webhook") == []


async def test_the_same_message_is_kept_once(outbox: Outbox) -> None:
    await outbox.add([message("a", body="first")])
    await outbox.add([message("a", body="second")])
    (claim,) = await claims_of(outbox, 5)
    assert claim.message.body == "first"


async def test_a_claim_that_has_run_out_is_anybodys(outbox: Outbox) -> None:
    await outbox.add([message("a")])
    (lost,) = await claims_of(outbox, 5, 0.001)
    await asyncio.sleep(0.01)
    (claim,) = await claims_of(outbox, 5)
    await outbox.postpone(lost, lost.message, 0.0)
    assert await claims_of(outbox, 5) == [], "the first one may not give away what is the second's"
    await outbox.postpone(claim, claim.message.model_copy(update={"attempts": 1}), 0.0)
    (again,) = await claims_of(outbox, 5)
    assert again.message.attempts == 1


async def test_what_is_postponed_is_not_due_before(outbox: Outbox) -> None:
    await outbox.add([message("a")])
    (claim,) = await claims_of(outbox, 5)
    await outbox.postpone(claim, claim.message, 60.0)
    assert await claims_of(outbox, 5) == []


async def test_what_was_removed_is_gone(outbox: Outbox) -> None:
    await outbox.add([message("a")])
    (claim,) = await claims_of(outbox, 5, 0.001)
    await outbox.remove(claim)
    await asyncio.sleep(0.01)
    assert await claims_of(outbox, 5) == []


async def test_there_is_room_for_some_only(outbox: Outbox) -> None:
    assert list(await outbox.add([message(name) for name in "abcdef"])) == ["e", "f"]
    assert list(await outbox.add([message("a"), message("g")])) == ["g"]
    (claim,) = await claims_of(outbox, 1)
    await outbox.remove(claim)
    assert list(await outbox.add([message("h")])) == []


def of(tenant: str, *names: str, host: str = "a") -> list[Message]:
    return [message(f"{tenant}{name}", tenant=tenant, url=f"https://{host}/") for name in names]


async def test_a_tenant_leaves_half_of_the_room_to_others(outbox: Outbox) -> None:
    without = {tenant: list(await outbox.add(of(tenant, *"1234"))) for tenant in "abcd"}
    assert {tenant: 4 - len(ids) for tenant, ids in without.items()} == {"a": 2, "b": 1, "c": 1, "d": 0}
    for claim in await claims_of(outbox, 100):
        await outbox.remove(claim)
    assert list(await outbox.add(of("d", *"1234"))) == ["d3", "d4"]


async def test_a_tenant_leaves_half_of_the_slots_to_others(large: Outbox) -> None:
    slots = Slots(16, 256)
    for tenant in "abcdef":
        await large.add(of(tenant, *map(str, range(20))))
        await large.claim("upload", slots, HOLD_S)
    assert slots.tenants == {"a": 8, "b": 4, "c": 2, "d": 1, "e": 1}


async def test_without_keys_all_slots_are_everybodys(large: Outbox) -> None:
    await large.add(of("", *map(str, range(20))))
    assert len(await claims_of(large, 16)) == 16


async def test_tenants_take_turns_and_so_do_the_hosts_of_each(large: Outbox) -> None:
    await large.add([*of("a", "1", "2", host="x"), *of("a", "3", "4", host="y")])
    await asyncio.sleep(0.01)
    await large.add(of("b", "1", "2"))
    claims = await claims_of(large, 100)
    assert [claim.message.id for claim in claims] == ["a1", "b1", "a3", "b2", "a2", "a4"]


async def test_a_host_that_has_all_its_slots_is_passed_over(large: Outbox) -> None:
    slots = Slots(100, 2)
    await large.add([*of("a", *map(str, range(50)), host="x"), *of("a", "last", host="y")])
    claims = await large.claim("upload", slots, HOLD_S)
    assert [claim.message.host for claim in claims] == ["x", "y", "x"]
    assert await large.claim("upload", slots, HOLD_S) == []
    await large.remove(claims[0])
    slots.release(claims[0].message)
    assert [claim.message.host for claim in await large.claim("upload", slots, HOLD_S)] == ["x"]


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
        (queue,) = client.keys("*:outbox:upload:queue:*")
        messages = "darkroom:outbox:upload:messages"
        genuine = client.hget(messages, "a")
        client.hset(messages, mapping={"b": b"nonsense", "c": genuine, "d": b"x" * 100_000})
        client.zadd(queue, {"c": 0, "d": 0, "e": 0, "x" * 500: 0})
        client.hset(outbox._parts("j" * 32)[0], "0/0", b"nonsense")
    claims = await claims_of(outbox, 10)
    assert [claim.message.id for claim in claims] == ["a"]
    assert await outbox.settlements("j" * 32) == {}
    assert tier.damaged == 3
    await tier.close()


@pytest.mark.parametrize("part", ["queue:*", "hosts:*", "tenants", "waiting", "messages", "due"])
async def test_what_has_another_type_than_ours_is_replaced(redis: RedisServer, part: str) -> None:
    tier = RedisTier(redis_at(redis.url, timeout_ms=1000))
    outbox = RedisOutbox(tier, 10, 100)
    await outbox.add([message("a")])
    with redis.client() as client:
        (key,) = client.keys(f"*:outbox:upload:{part}") or [f"darkroom:outbox:upload:{part}"]
        client.delete(key)
        client.set(key, "of another type")
    await outbox.add([message("f")])
    assert "f" in [claim.message.id for claim in await claims_of(outbox, 10)]
    await tier.close()


async def test_what_a_version_with_one_queue_has_left_is_sent_once_its_own_claim_has_run_out(
    redis: RedisServer,
) -> None:
    """While an update lasts, both versions send what that one has put there."""
    tier = RedisTier(redis_at(redis.url, timeout_ms=1000))
    outbox, now = RedisOutbox(tier, 10, 100), time.time() * 1000
    left = [message("a", tenant="caf\u00e9", url="https://b/c?d"), message("nameless"), message("claimed")]
    with redis.client() as client:
        client.hset("darkroom:outbox:upload:messages", mapping={each.id: outbox._pack(each) for each in left})
        client.hset("darkroom:outbox:upload:messages", "e", b"nonsense")
        due = {"a": now, "nameless": now, "claimed": now + 300, "e": now, "gone": now}
        client.zadd("darkroom:outbox:upload:due", due)
        claims = await claims_of(outbox, 10)
        assert {claim.message.id: claim.message for claim in claims} == {each.id: each for each in left[:2]}
        for claim in claims:
            await outbox.postpone(claim, claim.message, 0.0)
        assert len(await claims_of(outbox, 10)) == 2
        await asyncio.sleep(0.4)
        for claim in (*claims, *await claims_of(outbox, 10)):
            await outbox.remove(claim)
        assert not client.exists(*(f"darkroom:outbox:upload:{name}" for name in ("due", "messages", "waiting")))
    await tier.close()


async def test_nothing_is_left_in_redis_when_all_is_sent(redis: RedisServer) -> None:
    tier = RedisTier(redis_at(redis.url, timeout_ms=1000))
    outbox = RedisOutbox(tier, 100, 100)
    await outbox.add([*of("a", "1", "2", host="x"), *of("a", "3", host="y")])
    for claim in await outbox.claim("upload", Slots(10, 10), 0.05):
        await outbox.remove(claim)
    await asyncio.sleep(0.1)
    assert await claims_of(outbox, 10) == []
    with redis.client() as client:
        assert client.keys("*:outbox:*") == []
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
        (claim,) = await claims_of(outbox, 5)
        await outbox.settle(claim.message, DONE)
        await outbox.remove(claim)
        assert outbox.waiting_here() == 0
        assert (await outbox.settlements("j" * 32))["0/0"].done
        await tier.close()

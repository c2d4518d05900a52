"""What one ingress has seen kill replicas is refused by all; without Redis each goes by what it knows."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from bench.redis_server import RedisServer
from deployments.engine.protocol.errors import GenerationFailed, Quarantined
from deployments.engine.protocol.events import Event, Failed
from serve_app.backends import redis_quarantine
from serve_app.backends.redis_quarantine import WAIT_S, RedisQuarantine
from serve_app.backends.replays import QUARANTINE_SECONDS
from serve_app.store.redis import RedisTier
from tests.serve_app.backends.test_replays import Replays, Scripted, events_of, lost, request, success
from tests.serve_app.fakes import until
from tests.serve_app.redis_servers import redis_at, wire_to

NAME = "darkroom:quarantine"


def inside_of(server: RedisServer) -> Any:
    """Somebody else's way into that Redis."""
    return server.client()


class Ingress:
    """The attempts of one process, and its way to Redis."""

    def __init__(self, url: str) -> None:
        self.tier = RedisTier(redis_at(url, timeout_ms=1000))
        self.shared = RedisQuarantine(self.tier, QUARANTINE_SECONDS)
        self.replays = Replays(shared=self.shared)

    async def ends_with(self, prompt: str, *, poison: bool = False) -> Event:
        script = Scripted([lost()] if poison else [success("")])
        return (await events_of(self.replays, request(prompt=prompt), script))[-1]

    async def refuses(self, prompt: str) -> bool:
        last = await self.ends_with(prompt)
        return isinstance(last, Failed) and isinstance(last.error, Quarantined)

    async def close(self) -> None:
        await self.shared.close()
        await self.tier.close()


@pytest.fixture
async def ingresses(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Ingress]]:
    monkeypatch.setattr(redis_quarantine, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(redis_quarantine, "WAIT_S", 2.0)
    with inside_of(server) as client:
        client.flushall()
    async with AsyncExitStack() as stack:
        made = [Ingress(server.url) for _ in range(2)]
        for each in made:
            stack.push_async_callback(each.close)
        yield made


async def convict(ingress: Ingress, prompt: str) -> None:
    last = await ingress.ends_with(prompt, poison=True)
    assert isinstance(last, Failed)
    assert isinstance(last.error, GenerationFailed)
    await ingress.shared.close()


async def test_what_one_ingress_has_convicted_all_refuse(ingresses: list[Ingress]) -> None:
    one, other = ingresses
    await convict(one, "poison")
    assert await one.refuses("poison")
    assert await other.refuses("poison")
    assert not await other.refuses("a cup")


async def test_a_verdict_in_redis_ends_and_there_are_not_too_many(
    ingresses: list[Ingress], server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_quarantine, "MOST", 3)
    one, _ = ingresses
    for number in range(5):
        await convict(one, f"poison {number}")
    with inside_of(server) as client:
        assert client.zcard(NAME) == 3
        assert 0 < client.ttl(NAME) <= QUARANTINE_SECONDS + 1


@pytest.mark.parametrize("kind", ["list", "string", "members", "moved", "for ever"])
async def test_nobody_who_writes_to_redis_has_anothers_request_refused(
    ingresses: list[Ingress], server: RedisServer, kind: str
) -> None:
    one, other = ingresses
    await convict(one, "poison")
    with inside_of(server) as client:
        (entry,) = client.zrange(NAME, 0, -1)
        fingerprint, until_ms, signature = entry.split(b":")
        client.delete(NAME)
        forever = time.time() + 1e9
        match kind:
            case "list":
                client.rpush(NAME, b"x")
            case "string":
                client.set(NAME, b"\xff" * 1000)
            case "members":
                client.zadd(NAME, {b"\xff\x00": forever, b"a:b:c": forever, b"": forever, b"x" * 10_000: forever})
            case "moved":
                client.zadd(NAME, {b":".join((b"0" * 64, until_ms, signature)): forever})
            case "for ever":
                later = b"%d" % (int(until_ms) + 10**9)
                client.zadd(NAME, {b":".join((fingerprint, later, signature)): forever})
    assert not await other.refuses("poison")
    assert other.tier.damaged >= 1
    # And what comes after that is shared again.
    await convict(one, "more poison")
    assert await other.refuses("more poison")


async def test_a_redis_that_is_silent_or_gone_delays_nobody_and_each_goes_by_its_own(server: RedisServer) -> None:
    async with wire_to(server) as wire:
        one = Ingress(wire.url)
        await convict(one, "poison")
        for mode in ("silent", "refuse"):
            await wire.turn(mode)
            one.shared._looked = float("-inf")
            begun = time.monotonic()
            assert await one.refuses("poison")
            assert not await one.refuses("a cup")
            assert time.monotonic() - begun < 2 * WAIT_S + 0.25
        await wire.turn("pass")
        await until(lambda: one.shared._looking is None)
        await asyncio.wait_for(one.close(), 5)

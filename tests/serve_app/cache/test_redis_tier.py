"""Results in a real Redis: shared by all processes, believed only when signed, and never in anybody's way."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from bench.redis_server import RedisServer
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.spec import ModelSpec
from deployments.weights.local_files import with_local_digest
from serve_app.cache import redis_tier
from serve_app.cache.entry import pack, unpack
from serve_app.cache.result_cache import ResultCache
from serve_app.config.secret import Secret
from serve_app.config.sections import CacheConfig, RedisConfig
from serve_app.generation.result import Result
from serve_app.service import DiffusionService
from serve_app.store.redis import RedisGone, RedisTier
from tests.serve_app.fakes import TINY, FakeBackend, until
from tests.serve_app.redis_servers import Wire, wire_to

CUP = GenerationParams(prompt="a red cup", seed=7, num_images=2)
KEY = "0123456789abcdef" * 4

# Long enough for a machine that is busy with other things; the bounds themselves are tested with the tier.
PATIENT_MS = 2000.0


@pytest.fixture
async def wire(server: RedisServer) -> AsyncIterator[Wire]:
    async with wire_to(server) as wire:
        yield wire


@pytest.fixture
def key(tmp_path: Path) -> Secret:
    (tmp_path / "key").write_text(KEY)
    return Secret(file=tmp_path / "key")


class Process:
    """An ingress process: a service with its own memory, over a backend of its own."""

    def __init__(
        self,
        url: str,
        key: Secret,
        timeout_ms: float = PATIENT_MS,
        models: Sequence[ModelSpec] = (TINY,),
        **config: Any,
    ) -> None:
        self.redis = RedisTier(RedisConfig(url=url, key=key, timeout_ms=timeout_ms))
        self.cache = ResultCache(CacheConfig(**config), self.redis)
        self.backend = FakeBackend(models=models)
        self.service = DiffusionService(self.backend, cache=self.cache, redis=self.redis)

    async def ask(self, tenant: str = "", **changes: Any) -> Result:
        params = CUP.model_copy(update=changes)
        return await self.service.collect(await self.service.prepare(params, tenant=tenant))

    async def told(self) -> dict[str, Any]:
        told: dict[str, Any] = (await self.service.get_generation_stats())["cache"]
        return told


@contextlib.asynccontextmanager
async def processes(url: str, key: Secret, count: int = 2, **config: Any) -> AsyncIterator[list[Process]]:
    async with contextlib.AsyncExitStack() as stack:
        made = [Process(url, key, **config) for _ in range(count)]
        for process in made:
            stack.push_async_callback(process.service.close)
        yield made


def entries_in(inside: redis.Redis) -> list[bytes]:
    return sorted(key for key in inside.keys("*") if isinstance(key, bytes) and b":result:" in key)


async def written(inside: redis.Redis, count: int) -> list[bytes]:
    await until(lambda: len(entries_in(inside)) == count)
    return entries_in(inside)


async def test_what_one_process_has_made_another_serves(server: RedisServer, inside: redis.Redis, key: Secret) -> None:
    async with processes(server.url, key) as (one, other):
        made = await one.ask()
        await written(inside, 1)
        served = await other.ask()
        assert served.source == "cache"
        assert [image.data for image in served.images] == [image.data for image in made.images]
        assert other.backend.asked == []
        assert (await other.told())["redis"] == {"hits": 1, "misses": 0}
        inside.flushall()
        assert (await other.ask()).source == "cache"
        assert (await other.told())["memory"] == {"hits": 1, "misses": 1}
        assert (await other.told())["saved_seconds"] == pytest.approx(0.072)


async def test_what_other_weights_made_is_not_served_after_a_restart(
    server: RedisServer, inside: redis.Redis, key: Secret, tmp_path: Path
) -> None:
    weights = tmp_path / "unet.safetensors"
    told = []
    for content in (b"before", b"before", b"behind"):
        weights.write_bytes(content)
        models = (with_local_digest(replace(TINY, source=str(tmp_path))),)
        async with processes(server.url, key, 1, models=models) as (one,):
            told.append((await one.ask()).source)
    assert told == ["made", "cache", "made"]


async def test_of_any_seed_and_never_of_another_tenant(server: RedisServer, inside: redis.Redis, key: Secret) -> None:
    async with processes(server.url, key) as (one, other):
        await one.ask(tenant="a")
        await written(inside, 1)
        assert (await other.ask(tenant="b")).source == "made"
        assert (await other.ask(tenant="b", prompt="a shoe", seed=None, cache="reuse")).source == "made"
        reused = await other.ask(tenant="a", seed=None, cache="reuse")
        assert (reused.source, reused.parameters.seed) == ("cache", 7)


async def test_it_is_forgotten_in_time(server: RedisServer, inside: redis.Redis, key: Secret) -> None:
    async with processes(server.url, key, 1, ttl_s=100) as (one,):
        await one.ask()
        await written(inside, 1)
        results = [name for name in inside.keys("*") if b":result:" in name or b":latest:" in name]
        assert len(results) == 2
        assert all(0 < inside.pttl(name) <= 100_000 for name in results)


@pytest.mark.parametrize("bad", ["cut", "garbage", "signed by another", "another's", "another type"])
async def test_an_entry_that_is_not_what_was_put_there_is_not_served(
    server: RedisServer, inside: redis.Redis, key: Secret, bad: str
) -> None:
    async with processes(server.url, key) as (one, other):
        await one.ask(prompt="a blue cup")
        (others,) = await written(inside, 1)
        await one.ask()
        (name,) = set(await written(inside, 2)) - {others}
        data = inside.get(name)
        assert isinstance(data, bytes)
        forged = replace(unpack(name.decode(), data, one.redis.signing_key("results")), images=())
        replacements = {
            "cut": data[:-1],
            "garbage": b"\x80\x04garbage",
            "signed by another": pack(name.decode(), forged, b"another key"),
            "another's": inside.get(others),
        }
        inside.delete(name)
        if bad == "another type":
            inside.rpush(name, data)
        else:
            inside.set(name, replacements[bad] or b"")
        result = await other.ask()
        assert (result.source, len(result.images)) == ("made", 2)
        told = await other.told()
        assert told["bad_entries"] + told["redis_failures"] == 1
        assert told["redis"] == {"hits": 0, "misses": 1}


async def test_emptied_by_one_is_empty_for_all_and_stays_so(
    server: RedisServer, inside: redis.Redis, key: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_tier, "GENERATION_AGE_S", 0.0)
    async with processes(server.url, key) as (one, other):
        await one.ask()
        await written(inside, 1)
        assert (await other.ask()).source == "cache"
        assert await one.service.empty_cache() == 1
        assert (await other.ask()).source == "made"
        await written(inside, 2)
        assert (await one.ask()).source == "cache"
        # Redis was full and forgot which generation is the one of now: no earlier one comes back.
        inside.delete("darkroom:cache:generation")
        assert (await one.ask()).source == "made"
        await written(inside, 3)
        assert (await other.ask()).source == "cache"


async def test_what_was_emptied_cannot_be_copied_back(server: RedisServer, inside: redis.Redis, key: Secret) -> None:
    async with processes(server.url, key) as (one, other):
        await one.ask()
        (name,) = await written(inside, 1)
        old = inside.get("darkroom:cache:generation")
        await one.service.empty_cache()
        new = inside.get("darkroom:cache:generation")
        assert isinstance(old, bytes)
        assert isinstance(new, bytes)
        assert inside.copy(name.decode(), name.replace(old, new).decode())
        assert (await other.ask()).source == "made"
        assert (await other.told())["bad_entries"] == 1


async def test_what_was_made_before_the_emptying_does_not_come_after_it(
    server: RedisServer, inside: redis.Redis, key: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_tier, "GENERATION_AGE_S", 0.0)
    async with processes(server.url, key) as (one, other):
        await one.ask(seed=1)
        await written(inside, 1)
        one.backend.script = lambda request: [0.1, *FakeBackend().script(request)]
        making = asyncio.create_task(one.ask())
        await until(lambda: one.backend.running == 1)
        await other.service.empty_cache()
        await making
        await asyncio.sleep(0.05)
        assert (await other.ask()).source == "made"


async def test_a_redis_that_is_gone_cannot_be_emptied_and_that_is_said(
    wire: Wire, inside: redis.Redis, key: Secret
) -> None:
    async with processes(wire.url, key, 1) as (one,):
        await one.ask()
        await wire.turn("refuse")
        with pytest.raises(RedisGone):
            await one.service.empty_cache()
        assert (await one.service.health()).cache_entries == 0


async def test_answers_do_not_wait_for_what_is_stored(
    wire: Wire, inside: redis.Redis, key: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_tier, "GENERATION_AGE_S", 1e6)
    async with processes(wire.url, key, 1) as (one,):
        await one.ask()
        await wire.turn("slow", delay_s=1.0)
        begun = time.monotonic()
        await one.ask(seed=None)
        assert time.monotonic() - begun < 0.5
        await written(inside, 2)


async def test_what_waits_for_redis_is_bounded_and_so_is_what_is_sent(
    wire: Wire, inside: redis.Redis, key: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_tier, "GENERATION_AGE_S", 1e6)
    async with processes(wire.url, key) as (other, one):
        await other.ask()
        await written(inside, 1)
        # It knows Redis by now, and has nothing under way: the result was somebody else's.
        assert (await one.ask()).source == "cache"
        await wire.turn("slow", delay_s=1.0)
        for _ in range(redis_tier.MAX_WRITES + 3):
            await one.ask(seed=None)
        assert (await one.told())["writes_dropped"] == 3
        monkeypatch.setattr(redis_tier, "MAX_ENTRY_BYTES", 100)
        await one.ask(seed=None)
        assert (await one.told())["too_large"] == 1


@pytest.mark.parametrize("mode", ["refuse", "silent", "cut"])
async def test_without_redis_requests_are_served_at_once_and_health_says_so(
    wire: Wire, inside: redis.Redis, key: Secret, mode: Any
) -> None:
    async with processes(wire.url, key, 1, timeout_ms=50.0) as (one,):
        await one.ask()
        assert (await one.service.health()).status == "healthy"
        await wire.turn(mode)
        begun = time.monotonic()
        results = [await one.ask(seed=seed) for seed in (7, *range(100, 110))]
        assert time.monotonic() - begun < 1.0
        assert [result.source for result in results] == ["cache"] + ["made"] * 10
        health = await one.service.health()
        assert (health.status, health.is_ready) == ("degraded", True)
        told = await one.told()
        # Three in a row open the breaker; what was on its way to Redis by then fails, too.
        assert 3 <= told["redis_failures"] <= 6
        assert told["redis_skipped"] > 0

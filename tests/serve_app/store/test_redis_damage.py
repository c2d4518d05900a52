"""Whatever stands in Redis in the place of what was put there: requests are answered right, and never with a 500."""

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.redis_server import RedisServer
from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.config.sections import CacheConfig, IdempotencyConfig, JobsConfig, Limits, LimitsConfig
from serve_app.gateway.idempotency import Idempotency
from serve_app.gateway.idempotency_store import RedisIdempotencyStore
from serve_app.gateway.rate_limits import RateLimits
from serve_app.gateway.setup import Gateway
from serve_app.jobs.local_jobs import LocalJobs
from serve_app.jobs.redis_jobs import RedisJobs
from serve_app.jobs.redis_store import RedisJobStore
from serve_app.service import DiffusionService
from serve_app.store.redis import RedisTier
from tests.serve_app.fakes import PATH, FakeBackend, http, until
from tests.serve_app.redis_servers import redis_at

BASE = "/ads/v2/diffusion"
CUP = {"prompt": "a cup", "seed": 7, "width": 64, "height": 64}
ONCE = {"Idempotency-Key": "the-key"}
BATCH = {"requests": [CUP, {**CUP, "prompt": "a shoe"}]}
LATER = {"Prefer": "respond-async"}


def inside_of(server: RedisServer) -> Any:
    """Somebody else's way into that Redis, who writes what he likes."""
    return server.client()


class Ingress:
    """One process with all that it has in Redis: results, limits, answers, jobs."""

    def __init__(self, server: RedisServer) -> None:
        self.tier = RedisTier(redis_at(server.url, timeout_ms=2000))
        self.backend = FakeBackend()
        jobs = JobsConfig(lease_s=5.0)
        cache = ResultCache(CacheConfig(memory_bytes=2**20), self.tier)
        self.service = DiffusionService(self.backend, cache=cache, redis=self.tier)
        counts = self.service.gateway_counts
        shared = RedisIdempotencyStore(self.tier, self.tier.signing_key("answers"), 3600)
        limits = LimitsConfig(per_address=Limits(requests_per_minute=10_000, cost_per_minute=10_000))
        self.app = create_api(
            self.service,
            gateway=Gateway(
                limits=RateLimits(limits, self.tier, counts, lambda: 1_000_000.0),
                idempotency=Idempotency(IdempotencyConfig(), shared, counts),
            ),
            jobs_config=jobs,
            job_store=RedisJobStore(
                LocalJobs(jobs), RedisJobs(self.tier, jobs, self.tier.signing_key("jobs"), "a" * 32)
            ),
        )

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        async with http(self.app) as client:
            yield client
        await self.app.state.jobs.stop()
        await self.service.close()


async def put_everything(server: RedisServer) -> tuple[str, list[bytes]]:
    """Redis with something of every kind in it: a finished job's id, and all keys."""
    with inside_of(server) as inside:
        inside.flushall()
    ingress = Ingress(server)
    async with ingress.client() as client:
        assert (await client.post(PATH, json=CUP)).status_code == 200
        assert (await client.post(PATH, json={**CUP, "seed": 8}, headers=ONCE)).status_code == 200
        job = (await client.post(f"{BASE}/batch-generate", json=BATCH, headers=LATER)).json()["id"]
        await until(lambda: not ingress.app.state.jobs._runs)
        assert (await client.get(f"{BASE}/jobs/{job}")).json()["state"] == "succeeded"
    with inside_of(server) as inside:
        # A job that is not begun yet, a lock that is held, and somebody who works on the job.
        inside.zadd("darkroom:jobs:unfinished", {"b" * 32: 1.0})
        inside.hset("darkroom:jobs:turns", "b" * 32, "1 tenant")
        inside.hset("darkroom:jobs:picture_bytes", "b" * 32, "7")
        return job, sorted(key for key in inside.keys("*") if isinstance(key, bytes))


def damage(inside: Any, key: bytes, kind: str, garbage: bytes) -> None:
    """Puts something else in the place of `key`."""
    before = inside.type(key)
    if kind == "inside" and before == b"hash":
        for field in inside.hkeys(key):
            inside.hset(key, field, garbage)
        inside.hset(key, garbage, garbage)
        return
    if kind == "inside" and before == b"zset":
        inside.zadd(key, {garbage: float("inf"), b"\xff" * 40: float("-inf")})
        return
    if kind == "cut" and before == b"string":
        inside.set(key, (inside.get(key) or b"")[: len(garbage)])
        return
    inside.delete(key)
    match kind:
        case "list":
            inside.rpush(key, garbage)
        case "hash":
            inside.hset(key, garbage, garbage)
        case "set":
            inside.sadd(key, garbage)
        case "zset":
            inside.zadd(key, {garbage: 1.0})
        case "stream":
            inside.xadd(key, {b"a": garbage})
        case "huge":
            inside.setrange(key, 32 * 1024 * 1024, b"x")
        case "empty":
            inside.set(key, b"")
        case _:
            inside.set(key, garbage)


KINDS = ("list", "hash", "set", "zset", "stream", "string", "inside", "cut", "huge", "empty")
GARBAGE = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from(
        [
            b"nan",
            b"-1",
            b"1e400",
            b"0x10",
            b"9" * 40,
            b"\xff\xfe",
            b"lock:",
            b"lock:00",
            b"lock:0123456789abcdef:xyz",
            b"lock:0123456789abcdef:abc",
            b"lock:0123456789abcdef:" + b"ab" * 32,
            b"lock:\xff\xff:\xff",
            b"DRK1" + b"\0" * 60,
            b"darkroom sealed 1\n" + b"\0" * 60,
            b"\x80\x04.",
            b"null",
            b"[]",
            b"{}",
        ]
    ),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=GARBAGE, data=st.data())
async def test_no_damage_in_redis_is_an_error_or_a_wrong_answer(
    server: RedisServer, caplog: pytest.LogCaptureFixture, kind: str, garbage: bytes, data: st.DataObject
) -> None:
    job, keys = await put_everything(server)
    spared = data.draw(st.sets(st.integers(0, len(keys) - 1)), label="spared")
    with inside_of(server) as inside:
        for number, key in enumerate(keys):
            if number not in spared:
                damage(inside, key, kind, garbage)
    caplog.clear()
    ingress = Ingress(server)
    with caplog.at_level(logging.ERROR):
        async with ingress.client() as client:
            for _ in range(2):
                await ask_for_everything(client, job)
            await until(lambda: not ingress.app.state.jobs._runs)
    assert [record.getMessage() for record in caplog.records] == []
    # Whatever it was, it keeps nobody from the rest of Redis.
    assert ingress.tier.well


async def ask_for_everything(client: httpx.AsyncClient, job: str) -> None:
    made = (await client.post(PATH, json=CUP)).json()
    assert [image["seed"] for image in made["images"]] == [7]
    again = await client.post(PATH, json={**CUP, "seed": 8}, headers=ONCE)
    assert again.status_code == 200
    assert [image["seed"] for image in again.json()["images"]] == [8]
    told = await client.get(f"{BASE}/jobs/{job}")
    assert told.status_code in (200, 404)
    if told.status_code == 200:
        assert [entry["status"] for entry in told.json()["results"]] == [200, 200]
        picture = await client.get(told.json()["results"][0]["images"][0]["url"])
        assert (picture.status_code, picture.content[:4]) in ((200, b"\x89PNG"), (404, picture.content[:4]))
    assert (await client.get(f"{BASE}/jobs")).status_code == 200
    fresh = await client.post(f"{BASE}/batch-generate", json=BATCH, headers=LATER)
    assert fresh.status_code == 202
    assert (await client.delete(f"{BASE}/jobs/{fresh.json()['id']}")).status_code == 200
    assert (await client.delete(f"{BASE}/cache")).status_code == 200


async def test_a_finished_job_that_lost_an_entry_is_not_told_as_whole(server: RedisServer) -> None:
    job, _ = await put_everything(server)
    with inside_of(server) as inside:
        inside.hdel(f"darkroom:job:{job}:documents", "1")
    ingress = Ingress(server)
    async with ingress.client() as client:
        assert (await client.get(f"{BASE}/jobs/{job}")).status_code == 404
        assert (await client.get(f"{BASE}/jobs")).json()["jobs"] == []
    assert ingress.tier.damaged > 0


DAMAGED_LOCKS: list[Any] = [
    b"lock:",
    b"lock:0123456789abcdef:xyz",
    b"lock:0123456789abcdef:abc",
    b"lock:\xff\xfe:\xff",
    b"\x00" * 100,
    b"",
]


@pytest.mark.parametrize("value", DAMAGED_LOCKS)
async def test_a_damaged_lock_is_replaced_by_a_good_one(server: RedisServer, value: bytes) -> None:
    await put_everything(server)
    with inside_of(server) as inside:
        (key,) = inside.keys("darkroom:idempotency:*")
        inside.set(key, value)
    ingress = Ingress(server)
    async with ingress.client() as client:
        assert (await client.post(PATH, json={**CUP, "seed": 8}, headers=ONCE)).status_code == 200
    assert ingress.tier.damaged == 1
    # It is kept again, for whoever asks another process.
    async with Ingress(server).client() as client:
        answer = await client.post(PATH, json={**CUP, "seed": 8}, headers=ONCE)
        assert answer.headers["idempotent-replayed"] == "true"


async def test_a_lock_that_never_ends_is_nobodys(server: RedisServer) -> None:
    await put_everything(server)
    with inside_of(server) as inside:
        (key,) = inside.keys("darkroom:idempotency:*")
        inside.set(key, b"lock:0123456789abcdef:" + b"ab" * 32)
    async with Ingress(server).client() as client:
        assert (await client.post(PATH, json={**CUP, "seed": 8}, headers=ONCE)).status_code == 200

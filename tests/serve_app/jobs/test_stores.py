"""Laws of every store of jobs: in memory, in Redis, and with a Redis that does not answer."""

from collections.abc import AsyncIterator

import pytest

from bench.redis_server import RedisServer
from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.params import GenerationParams
from serve_app.config.sections import JobsConfig
from serve_app.jobs.job import Job
from serve_app.jobs.local_jobs import LocalJobs
from serve_app.jobs.memory_store import MemoryJobStore
from serve_app.jobs.redis_jobs import RedisJobs
from serve_app.jobs.redis_store import RedisJobStore
from serve_app.jobs.store import JobStore
from serve_app.store.redis import RedisTier
from tests.serve_app.redis_servers import redis_at

CONFIG = JobsConfig()
KEY = b"a key of thirty-two or more characters"


@pytest.fixture(params=["memory", "redis", "redis that does not answer"])
async def store(request: pytest.FixtureRequest, server: RedisServer) -> AsyncIterator[JobStore]:
    local = LocalJobs(CONFIG)
    if request.param == "memory":
        yield MemoryJobStore(local)
        return
    with server.client() as client:
        client.flushall()
    url = server.url if request.param == "redis" else "redis://127.0.0.1:1"
    tier = RedisTier(redis_at(url, timeout_ms=1000))
    yield RedisJobStore(local, RedisJobs(tier, CONFIG, KEY, "a"))
    await tier.close()


def has_capacity() -> bool:
    return True


def job(name: str, tenant: str = "acme", created: float = 1.0) -> Job:
    params = GenerationParams(prompt="a cup", seed=1)
    return Job(name * 32, tenant, created, 1, {0: params})


async def test_what_was_added_is_found_and_waits(store: JobStore) -> None:
    first, second = job("a"), job("b", created=2.0)
    second.round = 1
    await store.add(first)
    await store.add(second)
    assert [each.id for each in await store.unfinished()] == [first.id, second.id]
    found = await store.find(second.id)
    assert found is not None
    assert (found.tenant, found.state, found.ahead) == ("acme", "queued", 1)
    assert first.durable == (first not in store.only_here)


async def test_a_job_that_was_claimed_runs_and_is_kept_when_it_is_over(store: JobStore) -> None:
    await store.add(job("a"))
    claimed = [each async for each in store.claim_jobs((), has_capacity)]
    assert [each.id for each in claimed] == ["a" * 32]
    (running,) = claimed
    running.begin(2.0, lambda: 0.5)
    assert await store.renew_lease(running) == "ours"
    running.add(0, {"index": 0, "status": 200}, (b"pixels",))
    await store.save(running)
    running.end(3.0)
    await store.finish(running)
    assert await store.unfinished() == []
    over = await store.find("a" * 32) or running
    assert (over.state, await store.files(over.id, 0)) == ("succeeded", (b"pixels",))


async def test_a_job_that_runs_here_is_not_claimed_again(store: JobStore) -> None:
    await store.add(job("a"))
    (running,) = [each async for each in store.claim_jobs((), has_capacity)]
    assert [each async for each in store.claim_jobs({running.id}, has_capacity)] == []


async def test_no_more_jobs_are_claimed_than_there_is_capacity_for(store: JobStore) -> None:
    for name in "abc":
        await store.add(job(name))
    claimed: list[Job] = []
    async for each in store.claim_jobs((), lambda: len(claimed) < 2):
        claimed.append(each)
    assert [each.id for each in claimed] == ["a" * 32, "b" * 32]


async def test_a_process_that_begins_to_stop_while_it_looks_for_jobs_leaves_them_to_others(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()
    tier = RedisTier(redis_at(server.url, timeout_ms=1000))
    local, redis = LocalJobs(CONFIG), RedisJobs(tier, CONFIG, KEY, "a")
    store, stopping = RedisJobStore(local, redis), False
    await store.add(job("a"))
    load = redis.load

    async def load_while_it_stops(job_id: str) -> Job | None:
        nonlocal stopping
        stopping = True
        return await load(job_id)

    redis.load = load_while_it_stops  # type: ignore[method-assign]
    assert [each async for each in store.claim_jobs((), lambda: not stopping)] == []
    assert local.unfinished == []
    assert await RedisJobs(tier, CONFIG, KEY, "b").lease("a" * 32)
    await tier.close()


async def test_what_may_be_in_a_redis_that_does_not_answer_is_not_denied(store: JobStore) -> None:
    """Nobody is told that there is no such job, where that is not known."""
    try:
        assert await store.find("c" * 32) is None
        assert await store.of_tenant("acme", 10) == []
    except Overloaded:
        assert isinstance(store, RedisJobStore)

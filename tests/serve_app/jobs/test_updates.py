"""While ingresses are updated, jobs of one version are read by the other, or left to the one that can read them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from bench.redis_server import RedisServer
from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.params import GenerationParams
from deployments.signing.signed import sign
from serve_app.jobs import redis_store
from serve_app.jobs.job import Job, notes_of, restore, spec_of, state_of
from serve_app.jobs.manager import new_job_id
from tests.serve_app.fakes import TINY, slow, until
from tests.serve_app.jobs.test_manager import KEY, Process


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def process(redis: RedisServer) -> AsyncIterator[Process]:
    process = Process("a", redis)
    yield process
    await process.close()


def write_spec(redis: RedisServer, job: Job, **more: Any) -> None:
    """Saves the job as another version would that has `more` to say."""
    with redis.client() as client:
        client.set(f"darkroom:job:{job.id}:spec", sign(f"{job.id}:spec", spec_of(job) | more, (), KEY))


async def waiting_job(process: Process) -> Job:
    job = Job(new_job_id(), "me", 1.0, 1, {0: GenerationParams(prompt="a cup", seed=1)})
    await process.store.add(job)
    return job


async def test_a_job_that_only_another_version_can_read_is_left_to_it(process: Process, redis: RedisServer) -> None:
    job, other = await waiting_job(process), await process.submit("a", tenant="me")
    write_spec(redis, job, colour="red")
    for _ in range(2):
        await process.jobs._begin_jobs()
    await process.end_of(other)
    # Nobody is told that there is no such job.
    with pytest.raises(Overloaded):
        await process.jobs.find(job.id, "me")
    with pytest.raises(Overloaded):
        await process.jobs.cancel(job.id, "me")
    assert [each.id for each in await process.jobs.of_tenant("me")] == [other.id]
    assert process.tier is not None
    assert process.tier.damaged == 0
    with redis.client() as client:
        assert not client.exists(f"darkroom:job:{job.id}:lease")
    newer = Process("b", redis)
    write_spec(redis, job)
    newer.jobs.start()
    assert (await newer.end_of(job)).succeeded == 1
    await newer.close()


async def test_a_job_that_nobody_can_read_any_more_does_not_wait_for_ever(process: Process, redis: RedisServer) -> None:
    clock = process.store._clock = Clock()  # type: ignore[attr-defined]
    job = await waiting_job(process)
    write_spec(redis, job, colour="red")
    for now, waiting in ((0, 1), (redis_store.LEAVE_S - 1, 1), (redis_store.LEAVE_S + 1, 0)):
        clock.now = now
        await process.jobs._begin_jobs()
        assert len(await process.store.unfinished()) == waiting
    assert await process.jobs.find(job.id, "me") is None


def test_the_version_before_can_read_what_it_needs() -> None:
    """It refuses keys that it does not know, and every parameter may be one of them."""
    params = GenerationParams(prompt="a cup", cache="reuse", seed=7)
    job = Job("a" * 32, "me", 1.0, 1, {0: params}, drawn=frozenset({0}))
    assert spec_of(job) == {
        "tenant": "me",
        "created": 1.0,
        "entries": 1,
        "params": {"0": {"prompt": "a cup", "cache": "reuse", "seed": 7}},
    }
    assert restore(job.id, spec_of(job), state_of(job), {}).drawn == frozenset()
    assert restore(job.id, spec_of(job), state_of(job), {}, notes_of(job)).drawn == {0}
    assert restore(job.id, spec_of(job), state_of(job), {}, notes_of(job) | {"colour": "red"}).drawn == {0}


@pytest.mark.parametrize("shared", [False, True])
async def test_the_models_own_defaults_hold_whoever_makes_an_entry(redis: RedisServer, shared: bool) -> None:
    process = Process("a", redis if shared else None)
    process.backend.models = (replace(TINY, default_steps=4, default_guidance_scale=1.5),)
    await process.end_of(await process.submit("a", seed=1))
    (made,) = process.backend.asked
    assert (made.params.num_inference_steps, made.params.guidance_scale) == (4, 1.5)
    await process.close()


async def test_who_takes_up_a_job_knows_which_seeds_were_drawn(redis: RedisServer) -> None:
    first, second = Process("a", redis), Process("b", redis)
    first.backend.script = slow
    job = await first.submit("a", "b", cache="similar")
    await until(lambda: len(first.backend.asked) == 2)
    await first.close()
    second.jobs.start()
    assert (await second.end_of(job)).succeeded == 2
    taken = {request.name: request.params.seed for request in second.backend.asked}
    assert taken == {request.name: request.params.seed for request in first.backend.asked}
    assert all(request.seed_drawn for request in second.backend.asked)
    await second.close()

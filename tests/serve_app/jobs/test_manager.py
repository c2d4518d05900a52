"""Jobs outlive their ingress where Redis keeps them, one process at a time works on each, and pictures stay equal."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.redis_server import RedisServer
from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.events import Accepted
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from serve_app.api.responses.batch_entries import entry_document
from serve_app.config.sections import JobsConfig
from serve_app.jobs.job import Job
from serve_app.jobs.local_jobs import LocalJobs
from serve_app.jobs.manager import Jobs, TooManyJobs, new_job_id
from serve_app.jobs.memory_store import MemoryJobStore
from serve_app.jobs.redis_jobs import RedisJobs
from serve_app.jobs.redis_store import RedisJobStore
from serve_app.jobs.store import JobStore
from serve_app.service import DiffusionService
from serve_app.store.redis import RedisTier
from tests.serve_app.fakes import FakeBackend, Script, Step, slow, success, until
from tests.serve_app.redis_servers import redis_at

KEY = b"a key of thirty-two or more characters"


class Process:
    """One ingress process, as far as jobs go: a service of its own, and the way to Redis."""

    def __init__(self, name: str, redis: RedisServer | None, service: DiffusionService | None = None, **config: Any):
        self.backend = FakeBackend()
        self.service = service or DiffusionService(self.backend)
        self.tier = None if redis is None else RedisTier(redis_at(redis.url, timeout_ms=1000))
        settings = JobsConfig.model_validate({"lease_s": 0.6, "in_flight": 2} | config)
        self.local = LocalJobs(settings)
        self.store: JobStore = MemoryJobStore(self.local)
        if self.tier is not None:
            self.redis = RedisJobs(self.tier, settings, KEY, name)
            self.store = RedisJobStore(self.local, self.redis)
        self.jobs = Jobs(self.service, settings, entry_document, self.store)

    async def submit(self, *prompts: str, tenant: str = "", **asked: Any) -> Job:
        params = {i: GenerationParams.model_validate({"prompt": each, **asked}) for i, each in enumerate(prompts)}
        return await self.jobs.submit(new_job_id(), params, {}, tenant)

    async def now(self, job: Job) -> Job:
        found = await self.jobs.find(job.id, job.tenant)
        assert found is not None
        return found

    async def end_of(self, job: Job, seconds: float = 10) -> Job:
        async with asyncio.timeout(seconds):
            async for state in self.jobs.follow(job.id, job.tenant):
                last = state
        assert last.over
        # What it was is told a moment before it is saved.
        await until(lambda: job.id not in self.jobs._runs)
        return last

    async def pictures(self, job: Job) -> list[bytes]:
        """Of all entries, in their order."""
        found = [await self.jobs.files(job, index) for index in sorted(job.documents)]
        return [file for files in found for file in files or ()]

    def die(self) -> None:
        """Without a word: nothing that it had begun goes on, and nobody is told."""
        self.jobs._stopped = True
        self.store.release = _releases_nothing  # type: ignore[assignment, method-assign]
        for run in self.jobs._runs.values():
            run.stop()
        for task in self.jobs._tasks:
            task.cancel()

    async def close(self) -> None:
        await self.jobs.stop()
        if self.tier is not None:
            await self.tier.close()


async def _releases_nothing(_: Job) -> None:
    return None


Start = Callable[..., Process]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        def start(*arguments: Any, script: Script = success, **more: Any) -> Process:
            process = Process(*arguments, **more)
            process.backend.script = script
            process.jobs.start()
            stack.push_async_callback(process.close)
            return process

        yield start


def quick_or_slow(request: Request) -> Sequence[Step]:
    return slow(request) if request.params.prompt == "slow" else success(request)


def slowly(request: Request) -> Sequence[Step]:
    return [Accepted(request.id, 0), 0.05, *success(request)[1:]]


async def test_a_job_runs_though_nobody_waits(start: Start) -> None:
    process = start("a", None)
    job = await process.submit("a", "b", "c", seed=1)
    assert (job.state, job.durable) == ("running", False)
    job = await process.end_of(job)
    assert (job.state, job.succeeded, job.progress) == ("succeeded", 3, 1.0)
    assert len(await process.pictures(job)) == 3


async def test_who_follows_hears_of_changes_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.jobs.manager.FOLLOW_S", 60)
    process = start("a", None, script=slowly)
    assert (await process.end_of(await process.submit("a", "b", "c"), seconds=5)).succeeded == 3


async def test_jobs_beyond_the_hands_wait_for_their_turn(start: Start) -> None:
    process = start("a", None, running=1, waiting=3, script=slow)
    first, second, third = [await process.submit("a", seed=i) for i in range(3)]
    assert [(await process.now(job)).state for job in (first, second, third)] == ["running", "queued", "queued"]
    assert [(await process.now(job)).ahead for job in (first, second, third)] == [0, 1, 2]
    with pytest.raises(Overloaded):
        await process.submit("too many")
    process.backend.script = success
    await process.jobs.cancel(first.id, "")
    assert [(await process.end_of(job)).state for job in (first, second, third)] == [
        "cancelled",
        "succeeded",
        "succeeded",
    ]


@pytest.mark.parametrize("shared", [False, True])
async def test_tenants_take_turns_and_none_may_have_all_places(start: Start, redis: RedisServer, shared: bool) -> None:
    process = start("a", redis if shared else None, running=1, waiting=6, waiting_per_tenant=3, script=slow)
    first, second, third = [await process.submit("many", tenant="many", seed=i) for i in range(3)]
    with pytest.raises(TooManyJobs) as caught:
        await process.submit("one more", tenant="many")
    assert caught.value.limit == 3
    other = await process.submit("one", tenant="one")
    jobs = [first, second, third, other]
    assert [(await process.now(job)).ahead for job in jobs] == [0, 2, 3, 1]
    process.backend.script = slowly
    await process.jobs.cancel(first.id, "many")
    for job in jobs:
        await process.end_of(job)
    done = [await process.now(job) for job in (other, second, third)]
    ended = [job.finished or 0.0 for job in done]
    assert ended == sorted(ended)
    assert [job.state for job in done] == ["succeeded"] * 3
    assert (await process.submit("one more", tenant="many")).state == "running"


async def test_turns_that_were_tampered_with_delay_no_job(start: Start, redis: RedisServer) -> None:
    process = start("a", redis, running=1, script=slow)
    first, *others = [await process.submit("a", tenant="a") for _ in range(4)]
    with redis.client() as client:
        for job, turn in zip(others, ["9" * 5000, "\u00b2 x", b"\xff\x00"], strict=True):
            client.hset("darkroom:jobs:turns", job.id, turn)
    assert sorted([(await process.now(job)).ahead for job in others]) == [1, 2, 3]
    process.backend.script = success
    await process.jobs.cancel(first.id, "a")
    assert [(await process.end_of(job)).state for job in others] == ["succeeded"] * 3


async def test_without_tenants_all_places_are_for_all(start: Start) -> None:
    process = start("a", None, running=1, waiting=4, waiting_per_tenant=1, script=slow)
    jobs = [await process.submit("a") for _ in range(4)]
    with pytest.raises(Overloaded):
        await process.submit("too many")
    for job in jobs:
        await process.jobs.cancel(job.id, "")


async def test_a_cancelled_job_keeps_what_is_done(start: Start) -> None:
    process = start(
        "a", None, script=lambda request: slow(request) if request.params.prompt == "slow" else success(request)
    )
    job = await process.submit("quick", "slow", "slow", "slow")
    await until(lambda: len(job.documents) == 1)
    for _ in range(2):
        ended = await process.jobs.cancel(job.id, "")
        assert ended is not None
        assert (ended.state, ended.succeeded, list(ended.documents)) == ("cancelled", 1, [0])
    assert process.backend.running == 0
    assert 0.25 <= job.progress < 1


async def test_a_job_belongs_to_its_tenant(start: Start, redis: RedisServer) -> None:
    for process in (start("a", None, script=slow), start("b", redis, script=slow)):
        job = await process.submit("a", tenant="me")
        for stranger in ("", "them"):
            assert await process.jobs.find(job.id, stranger) is None
            assert await process.jobs.cancel(job.id, stranger) is None
            assert await process.jobs.of_tenant(stranger) == []
        assert [each.id for each in await process.jobs.of_tenant("me")] == [job.id]
        assert (await process.now(job)).state == "running"


async def test_results_that_do_not_fit_fail_alone(start: Start) -> None:
    process = start("a", None, max_bytes=2**20)
    await process.submit("a", width=512, height=512, output_format="png", num_images=16)
    # Files of one colour are small; the bound is what is looked at.
    process.local._max_bytes = 1
    job = await process.end_of(await process.submit("a"))
    assert (job.state, job.documents[0]["status"]) == ("failed", 503)


async def test_a_finished_job_outlives_its_ingress(start: Start, redis: RedisServer) -> None:
    first = start("a", redis)
    job = await first.end_of(await first.submit("a", "b", seed=1))
    pictures = await first.pictures(job)
    assert len(pictures) == 2
    await first.close()
    second = start("b", redis)
    again = await second.now(job)
    assert (again.state, again.documents, again.durable) == ("succeeded", job.documents, True)
    assert await second.pictures(again) == pictures
    assert second.backend.asked == []


async def test_a_job_whose_ingress_died_is_taken_up_and_only_the_rest_is_made(start: Start, redis: RedisServer) -> None:
    first = start("a", redis, script=lambda request: slow(request) if request.name[-1] in "23" else success(request))
    job = await first.submit("a", "b", "c", "d")
    while len((await first.now(job)).documents) < 2:
        await asyncio.sleep(0.01)
    seeds = {index: params.seed for index, params in (await first.now(job)).params.items()}
    first.die()
    second = start("b", redis)
    done = await second.end_of(job)
    assert (done.state, done.succeeded) == ("succeeded", 4)
    assert sorted(request.name[-1] for request in second.backend.asked) == ["2", "3"]
    assert {index: document["images"][0]["seed"] for index, document in done.documents.items()} == seeds
    assert len(await second.pictures(done)) == 4


async def test_an_ingress_that_ends_leaves_its_jobs_to_others_at_once(start: Start, redis: RedisServer) -> None:
    first = start("a", redis, script=slow, lease_s=60)
    job = await first.submit("a")
    await until(lambda: first.backend.running == 1)
    second = start("b", redis, lease_s=60)
    await first.close()
    await second.jobs._begin_jobs()
    assert (await second.end_of(job)).state == "succeeded"


async def test_one_process_at_a_time_works_on_a_job(start: Start, redis: RedisServer) -> None:
    processes = [start(name, redis, script=slowly, running=2) for name in "abc"]
    jobs = [await processes[i % 3].submit("x", "y", "z", seed=1) for i in range(9)]
    for i, job in enumerate(jobs):
        await processes[(i + 1) % 3].end_of(job)
    asked = [request.name for process in processes for request in process.backend.asked]
    assert len(asked) == len(set(asked))
    assert len({name.partition(":")[0] for name in asked}) == 9


async def test_who_has_lost_the_lease_stops_and_changes_nothing(start: Start, redis: RedisServer) -> None:
    first = start("a", redis, script=slow, lease_s=60)
    job = await first.submit("a")
    await until(lambda: first.backend.running == 1)
    with redis.client() as client:
        client.set(f"darkroom:job:{job.id}:lease", "somebody else")
    await until(lambda: first.backend.running == 0)
    with redis.client() as client:
        assert client.get(f"darkroom:job:{job.id}:lease") == b"somebody else"
    assert (await first.now(job)).state == "running"


async def test_a_result_without_the_lease_is_not_written(start: Start, redis: RedisServer) -> None:
    first = start("a", redis, script=slowly, lease_s=60)
    job = await first.submit("a")
    await until(lambda: first.backend.running == 1)
    with redis.client() as client:
        client.set(f"darkroom:job:{job.id}:lease", "somebody else")
    await until(lambda: not first.jobs._runs)
    assert (await first.now(job)).documents == {}


async def test_a_job_on_another_ingress_can_be_cancelled(start: Start, redis: RedisServer) -> None:
    first = start("a", redis, script=slow)
    job = await first.submit("a")
    await until(lambda: first.backend.running == 1)
    second = start("b", redis)
    ended = await second.jobs.cancel(job.id, "")
    assert ended is not None
    assert ended.state == "cancelled"
    assert first.backend.running == 0
    assert second.backend.asked == []


async def test_a_waiting_job_can_be_cancelled(start: Start, redis: RedisServer) -> None:
    process = start("a", redis, script=slow, running=1)
    first, second = [await process.submit("a") for _ in range(2)]
    assert (await process.now(second)).state == "queued"
    await process.jobs.cancel(second.id, "")
    await process.jobs.cancel(first.id, "")
    assert [(await process.end_of(job)).state for job in (first, second)] == ["cancelled", "cancelled"]


async def test_a_job_goes_on_without_redis_and_says_so(start: Start, redis: RedisServer) -> None:
    process = start("a", redis, script=lambda request: [Accepted(request.id, 0), 0.5, *success(request)[1:]])
    job = await process.submit("a", "b", "c", seed=1)
    await until(lambda: process.backend.running == 2)
    assert (await process.now(job)).durable
    redis.stop()
    done = await process.end_of(job)
    assert (done.state, done.succeeded, done.durable) == ("succeeded", 3, False)
    assert len(await process.pictures(done)) == 3
    redis.start()
    other = start("b", redis)
    async with asyncio.timeout(20):
        while await other.jobs.find(job.id, "") is None:
            await asyncio.sleep(0.1)
    again = await other.now(job)
    assert (again.state, again.documents) == ("succeeded", done.documents)
    assert len(await other.pictures(again)) == 3


async def test_a_redis_that_has_lost_its_memory_is_told_again(start: Start, redis: RedisServer) -> None:
    process = start("a", redis, script=slowly)
    job = await process.submit("a", "b", "c", "d", "e", "f", seed=1)
    while len((await process.now(job)).documents) < 2:
        await asyncio.sleep(0.01)
    with redis.client() as client:
        client.flushall()
    done = await process.end_of(job)
    assert (done.state, done.succeeded, done.durable) == ("succeeded", 6, True)
    other = start("b", redis)
    again = await other.now(job)
    assert (again.state, len(await other.pictures(again))) == ("succeeded", 6)


async def test_a_job_can_be_begun_without_redis(start: Start, redis: RedisServer) -> None:
    process = start("a", redis)
    redis.stop()
    job = await process.submit("a", seed=1)
    assert not job.durable
    assert (await process.end_of(job)).state == "succeeded"
    with pytest.raises(Overloaded):
        await process.jobs.find(new_job_id(), "")


async def test_what_was_tampered_with_is_not_there(start: Start, redis: RedisServer) -> None:
    process = start("a", redis)
    job = await process.end_of(await process.submit("a", seed=1))
    with redis.client() as client:
        place, part = f"darkroom:job:{job.id}:files", b"0"
        data = client.hget(place, "0")
        assert isinstance(data, bytes)
        client.hset(place, part, data[:-1] + bytes([data[-1] ^ 1]))
        assert await process.jobs.files(await process.now(job), 0) is None
        client.hset(f"darkroom:job:{job.id}:documents", part, b"cos\nsystem\n(S'true'\ntR.")
    assert await process.jobs.find(job.id, "") is None


async def test_another_tenants_spec_cannot_be_put_in_a_jobs_place(start: Start, redis: RedisServer) -> None:
    process = start("a", redis)
    mine = await process.end_of(await process.submit("a", tenant="me"))
    theirs = await process.end_of(await process.submit("a", tenant="them"))
    with redis.client() as client:
        spec = client.get(f"darkroom:job:{mine.id}:spec")
        assert isinstance(spec, bytes)
        client.set(f"darkroom:job:{theirs.id}:spec", spec)
    assert await process.jobs.find(theirs.id, "me") is None


async def test_anothers_job_is_not_listed_even_where_redis_says_so(start: Start, redis: RedisServer) -> None:
    process = start("a", redis)
    theirs = await process.end_of(await process.submit("a", tenant="them"))
    mine = await process.end_of(await process.submit("a", tenant="me"))
    with redis.client() as client:
        for key in client.keys("darkroom:jobs:of:*"):
            client.zadd(key, {theirs.id: 1, mine.id: 2})
    assert [job.id for job in await process.jobs.of_tenant("me")] == [mine.id]


async def test_as_many_jobs_of_a_tenant_are_remembered_as_are_listed(
    start: Start, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.jobs.redis_jobs.MAX_LISTED", 3)
    process = start("a", redis)
    jobs = [await process.end_of(await process.submit("a", tenant="me")) for _ in range(5)]
    assert [job.id for job in await process.jobs.of_tenant("me")] == [job.id for job in jobs[:1:-1]]


async def test_finished_jobs_in_redis_are_bounded(start: Start, redis: RedisServer) -> None:
    process = start("a", redis, kept=2)
    jobs = [await process.end_of(await process.submit("a")) for _ in range(4)]
    assert [await process.jobs.find(job.id, "") is not None for job in jobs] == [False, False, True, True]
    with redis.client() as client:
        assert all(client.ttl(key) > 0 for key in client.keys("darkroom:job:*"))
        assert client.hlen("darkroom:jobs:bytes") == 2
        assert client.hlen("darkroom:jobs:turns") == 2
        assert [client.zcard(key) for key in client.keys("darkroom:jobs:of:*")] == [2]
    process.redis._max_bytes = 1
    await process.end_of(await process.submit("a"))
    async with asyncio.timeout(5):
        while await process.jobs.of_tenant(""):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def tiny_service(folder: Path) -> AsyncIterator[DiffusionService]:
    async with DiffusionService(models=[ModelSpec("tiny", str(folder))], device="cpu", threads=1) as service:
        yield service


async def test_pictures_are_the_same_whoever_makes_them(redis: RedisServer, tmp_path: Path, start: Start) -> None:
    from tests.deployments.engine.tiny import save_tiny_checkpoint

    folder = save_tiny_checkpoint(tmp_path / "tiny")
    async with tiny_service(folder) as service:
        first = start("a", redis, service=service, in_flight=1)
        job = await first.submit("a", "b", "c", num_inference_steps=30, sampler="euler_a")
        while not (await first.now(job)).documents:
            await asyncio.sleep(0.01)
        first.die()
        # One at a time, as they are alone below: at one batch size they are equal to the byte.
        second = start("b", redis, service=service, in_flight=1)
        done = await second.end_of(job, 30)
        assert done.succeeded == 3
        for index, params in done.params.items():
            alone = await service.generate(params)
            assert (await second.jobs.files(done, index)) == tuple(image.data for image in alone.images)

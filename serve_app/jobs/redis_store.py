"""Keeps jobs in Redis, and in this process' memory while Redis does not answer.

The one place that asks whether Redis is there. A job that is here only says that it is not `durable`; once Redis
answers again, it is saved there.
"""

import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Final

from deployments.engine.protocol.errors import Overloaded
from serve_app.jobs.fair_order import QueuedJob, fair_order
from serve_app.jobs.job import Job, UnknownForm
from serve_app.jobs.local_jobs import LocalJobs
from serve_app.jobs.memory_store import MemoryJobStore
from serve_app.jobs.redis_jobs import RedisJobs
from serve_app.jobs.store import LeaseLost, LeaseState
from serve_app.store.redis import RedisGone

log = logging.getLogger(__name__)

Clock = Callable[[], float]

LEAVE_S: Final = 24 * 3600.0
"""Longer than an update takes, and the jobs that wait meanwhile."""


class RedisJobStore(MemoryJobStore):
    """A `JobStore` that processes share. `local` holds the jobs that run here, and those that Redis does not have."""

    def __init__(self, local: LocalJobs, redis: RedisJobs, clock: Clock = time.monotonic) -> None:
        super().__init__(local)
        self._redis, self._clock = redis, clock
        self._left: dict[str, float] = {}

    @property
    def only_here(self) -> list[Job]:
        return [job for job in self._local.unfinished if not job.durable]

    async def add(self, job: Job) -> None:
        with suppress(RedisGone):
            await self._put(job)
            job.durable = True
        if not job.durable:
            await super().add(job)

    async def find(self, job_id: str) -> Job | None:
        job = await super().find(job_id)
        if job is not None:
            return job
        with _needing_redis():
            return await self._redis.load(job_id)

    async def of_tenant(self, tenant: str, most: int) -> list[Job]:
        found = {job.id: job for job in self._local.of_tenant(tenant)}
        with _needing_redis():
            for job_id in await self._redis.of_tenant(tenant, most):
                with suppress(UnknownForm):
                    job = None if job_id in found else await self._redis.load(job_id)
                    if job is not None and job.tenant == tenant:
                        found[job_id] = job
        return sorted(found.values(), key=lambda job: job.created, reverse=True)[:most]

    async def files(self, job_id: str, index: int) -> tuple[bytes, ...] | None:
        here = await super().files(job_id, index)
        if here is not None:
            return here
        with _needing_redis():
            return await self._redis.files(job_id, index)

    async def unfinished(self) -> list[QueuedJob]:
        try:
            return await self._redis.unfinished()
        except RedisGone:
            return await super().unfinished()

    async def claim_jobs(self, running: Collection[str], has_capacity: Callable[[], bool]) -> AsyncGenerator[Job, None]:
        """First those that are here only, then Redis' that nobody has leased: new ones, or of processes that died."""
        async with aclosing(super().claim_jobs(running, has_capacity)) as ours:
            async for job in ours:
                yield job
        with suppress(RedisGone):
            waiting = fair_order(await self._redis.unfinished())
            self._left = {job_id: since for job_id, since in self._left.items() if job_id in waiting}
            for job_id in waiting:
                if not has_capacity():
                    return
                if job_id in self._local or self._is_left(job_id) or not await self._redis.lease(job_id):
                    continue
                try:
                    loaded = await self._load_whole(job_id)
                except UnknownForm:
                    await self._leave(job_id)
                    continue
                if loaded is None:
                    await self._redis.forget(job_id)
                    continue
                if not has_capacity():
                    # This process has begun to stop meanwhile, and nobody here would work on it.
                    await self._redis.release(job_id)
                    return
                self._local.add(loaded)
                yield loaded

    async def claim(self, job: Job) -> bool:
        if job.id in self._local:
            return True
        with _needing_redis():
            if not await self._redis.lease(job.id):
                return False
        self._local.add(job)
        return True

    async def request_cancel(self, job: Job) -> None:
        with _needing_redis():
            await self._redis.request_cancel(job.id)

    async def renew_lease(self, job: Job) -> LeaseState:
        try:
            match await self._redis.renew_lease(job):
                case "cancel":
                    return "cancel"
                case "lost":
                    return "lost"
                case "missing":
                    await self._put(job)
                case "ours":
                    job.durable = not job.unsaved
        except RedisGone:
            job.durable = False
        return "ours"

    async def save(self, job: Job) -> None:
        try:
            if not await self._redis.save(job):
                await self._save_anew(job)
            job.durable = True
        except RedisGone:
            job.durable = False

    async def finish(self, job: Job) -> None:
        try:
            await self.save(job)
            if job.durable:
                await self._redis.finish(job)
                await self._redis.pictures.drop(job)
                self._local.drop(job)
        except LeaseLost:
            self._local.drop(job)
        except RedisGone:
            job.durable = False

    async def release(self, job: Job) -> None:
        with suppress(RedisGone):
            await self._redis.release(job.id)

    async def expire(self, now: float) -> None:
        await super().expire(now)
        for job in self._local:
            if job.over:
                await self.finish(job)

    def _is_left(self, job_id: str) -> bool:
        """Whether the job was left to another version a while ago, and is to be left on."""
        return job_id in self._left and self._clock() - self._left[job_id] < LEAVE_S

    async def _leave(self, job_id: str) -> None:
        """Leaves a job to the version that can read it, for a day: nobody may be there any more who can."""
        if job_id in self._left:
            await self._redis.forget(job_id)
            return
        log.warning("job %s was saved by another version of this service, and is left to it", job_id)
        self._left[job_id] = self._clock()
        await self._redis.release(job_id)

    async def _put(self, job: Job) -> None:
        # In this order: who takes up a job finds its pictures.
        await self._redis.pictures.put(job)
        await self._redis.put(job)

    async def _load_whole(self, job_id: str) -> Job | None:
        """Returns a job with its pictures, to be worked on; None where there is none, or they are lost."""
        job = await self._redis.load(job_id)
        if job is None or not job.left:
            return job
        pictures = await self._redis.pictures.read(job)
        if pictures is None:
            return None
        job.pictures = pictures
        return job

    async def _save_anew(self, job: Job) -> None:
        """The lease has run out, or Redis has lost its memory: goes on if nobody else has taken the job."""
        if await self._redis.renew_lease(job) == "missing":
            await self._put(job)
        if not await self._redis.lease(job.id) or not await self._redis.save(job):
            raise LeaseLost


@contextmanager
def _needing_redis() -> Iterator[None]:
    """Raises Overloaded in the place of RedisGone and UnknownForm."""
    try:
        yield
    except RedisGone:
        raise Overloaded("this job may be kept in Redis, which does not answer; come back later") from None
    except UnknownForm:
        raise Overloaded("only another version of this service, which is being updated, knows this job") from None

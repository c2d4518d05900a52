"""Jobs: batches that run though nobody waits for them, here or, where Redis keeps them, on any ingress.

Each process works on a few at a time (`job_run.py`). Where there is a shelf (`job_shelf.py`) jobs wait there, and
whoever has a hand free takes the next (`job_turns.py`) whose lease nobody holds: a new one, or one whose ingress has
died. Entries have seeds, so what was not finished is simply made again. Without a shelf, or as long as Redis does not
answer, a job lives in this process only, and says that it is not `durable`.
"""

import asyncio
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Final

from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.params import GenerationParams
from serve_app.config.sections import JobsConfig
from serve_app.generation.prepare import with_seed
from serve_app.jobs.fair_order import QueuedJob, fair_order, next_round
from serve_app.jobs.job import Document, Job
from serve_app.jobs.memory_store import MemoryJobStore
from serve_app.jobs.redis_store import RedisJobStore, digest_of
from serve_app.jobs.runner import Clock, JobRunner, Tell, spawn
from serve_app.service import DiffusionService
from serve_app.store.redis import RedisGone

log = logging.getLogger(__name__)

FOLLOW_S: Final = 0.5
CANCEL_S: Final = 3.0
LISTED: Final = 100
RETRY_S: Final = 30.0

_ID: Final = re.compile(r"[0-9a-f]{32}")


class TooManyJobs(Exception):
    """The tenant has `limit` unfinished jobs, and may have no more."""

    def __init__(self, limit: int) -> None:
        super().__init__("too many jobs")
        self.limit = limit


class Jobs:
    """The jobs of this process, and the way to those of others. Used on one event loop.

    Every method raises Overloaded where it would need Redis, which does not answer.
    """

    def __init__(
        self,
        service: DiffusionService,
        config: JobsConfig,
        tell: Tell,
        shelf: RedisJobStore | None = None,
        clock: Clock = time.time,
    ) -> None:
        self.config = config
        self._service, self._tell, self._shelf, self._clock = service, tell, shelf, clock
        self._memory = MemoryJobStore(config.keep_s, config.kept, config.max_bytes)
        self._runs: dict[str, JobRunner] = {}
        self._arriving: Counter[str] = Counter()
        self._taking = asyncio.Lock()
        # asyncio keeps weak references only.
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def start(self) -> None:
        """Begins to look for jobs that others have left behind, and to let go of old ones."""
        self._in_background(self._walk())

    async def stop(self) -> None:
        """Ends the work here. Jobs on the shelf are left to others; those that are here only are lost."""
        self._stopped = True
        runs = list(self._runs.values())
        for run in runs:
            run.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(run.ended() for run in runs), *self._tasks, return_exceptions=True)
        if lost := [job for job in self._memory.unfinished if not job.durable]:
            log.warning("%d unfinished jobs were in this process only, and end with it", len(lost))

    async def submit(
        self, job_id: str, params: Mapping[int, GenerationParams], refused: Mapping[int, Document], tenant: str
    ) -> Job:
        """A new job of these entries, some of which were `refused` at the door.

        Raises Overloaded where many wait, TooManyJobs where many of the tenant's do.

        `job_id` is `new_job_id`'s.
        Seeds are drawn now: whoever makes an entry, and however often, makes the same pictures.
        """
        seeded = {index: with_seed(each) for index, each in params.items()}
        job = Job(job_id, tenant, self._clock(), len(params) + len(refused), seeded)
        for index, document in refused.items():
            job.add(index, document, ())
        self._arriving[tenant] += 1
        try:
            unfinished = await self._unfinished()
            self._check_room(unfinished, tenant)
            job.turn = next_round(unfinished, digest_of(tenant))
            await self._keep(job)
        finally:
            self._arriving[tenant] -= 1
            # Or it would remember everybody who ever came.
            self._arriving += Counter()
        await self._take()
        return await self._now(job)

    def _check_room(self, unfinished: Sequence[QueuedJob], tenant: str) -> None:
        if len(unfinished) + self._arriving.total() > self.config.waiting:
            raise Overloaded("too many jobs are waiting; come back later", RETRY_S)
        own = sum(turn.tenant == digest_of(tenant) for turn in unfinished) + self._arriving[tenant]
        if tenant and own > self.config.waiting_per_tenant:
            raise TooManyJobs(self.config.waiting_per_tenant)

    async def find(self, job_id: str, tenant: str) -> Job | None:
        """The tenant's job of that id."""
        if not _ID.fullmatch(job_id):
            return None
        job = self._memory.get(job_id)
        if job is None and self._shelf is not None:
            try:
                job = await self._shelf.load(job_id)
            except RedisGone:
                raise _out_of_reach() from None
        elif job is not None and job.state == "queued":
            job.ahead = fair_order(self._in_memory()).index(job.id)
        return job if job is not None and job.tenant == tenant else None

    async def of_tenant(self, tenant: str) -> list[Job]:
        """The tenant's newest jobs, the newest first."""
        found = {job.id: job for job in self._memory if job.tenant == tenant}
        if self._shelf is not None:
            try:
                for job_id in await self._shelf.of_tenant(tenant, LISTED):
                    job = None if job_id in found else await self._shelf.load(job_id)
                    if job is not None and job.tenant == tenant:
                        found[job_id] = job
            except RedisGone:
                raise _out_of_reach() from None
        return sorted(found.values(), key=lambda job: job.created, reverse=True)[:LISTED]

    async def files(self, job: Job, index: int) -> tuple[bytes, ...] | None:
        """The pictures of an entry, in its document's order; None where there are none (any more)."""
        if index in job.files or self._shelf is None:
            return job.files.get(index)
        try:
            return await self._shelf.files(job.id, index)
        except RedisGone:
            raise _out_of_reach() from None

    async def cancel(self, job_id: str, tenant: str) -> Job | None:
        """Ends the tenant's job, unless it is over already; None where there is none. What is done is kept.

        Another ingress hears of it within a second; where it takes longer to end, the job is told as it is.
        """
        job = await self.find(job_id, tenant)
        if job is None or job.over:
            return job
        if job_id in self._runs:
            run = self._runs[job_id]
            run.cancel()
            await run.ended()
        elif job_id in self._memory:
            job.end(self._clock(), cancelled=True)
        elif self._shelf is not None:
            try:
                await self._cancel_on(self._shelf, job)
            except RedisGone:
                raise _out_of_reach() from None
        return await self._now(job)

    async def follow(self, job_id: str, tenant: str) -> AsyncGenerator[Job, None]:
        """The job now, and again whenever it has changed, or might have, to its end. Nothing where there is none."""
        while (job := await self.find(job_id, tenant)) is not None:
            # Whoever is given it takes a while, and must be given its end as well.
            changed, over = job.changed, job.over
            yield job
            if over:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_S):
                    await changed.wait()

    async def _now(self, job: Job) -> Job:
        with suppress(Overloaded):
            return await self.find(job.id, job.tenant) or job
        return job

    async def _cancel_on(self, shelf: RedisJobStore, job: Job) -> None:
        """Nobody works on the job, and it is over; or another ingress does, and is given a while to end."""
        if await shelf.lease(job.id):
            job.end(self._clock(), cancelled=True)
            self._memory.add(job)
            await self._run_of(job).settle()
            return
        await shelf.ask_to_cancel(job.id)
        with suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_S), aclosing(self.follow(job.id, job.tenant)) as states:
                async for _ in states:
                    pass

    async def _unfinished(self) -> list[QueuedJob]:
        if self._shelf is not None:
            with suppress(RedisGone):
                return await self._shelf.unfinished()
        return self._in_memory()

    def _in_memory(self) -> list[QueuedJob]:
        return [QueuedJob(job.id, digest_of(job.tenant), job.turn) for job in self._memory.unfinished]

    async def _keep(self, job: Job) -> None:
        """On the shelf, or else here."""
        if self._shelf is not None:
            with suppress(RedisGone):
                await self._shelf.put(job)
                job.durable = True
        if not job.durable:
            self._memory.add(job)

    async def _walk(self) -> None:
        while True:
            try:
                self._memory.expire(self._clock())
                for job in self._memory:
                    if job.over and self._shelf is not None:
                        # It could not be saved when it was time.
                        await self._run_of(job).settle()
                await self._take()
            except Exception:
                log.exception("unexpected error while looking after jobs")
            await asyncio.sleep(self.config.lease_s / 3)

    async def _take(self) -> None:
        """Begins jobs while there is a hand free: those that are here only first, then the shelf's."""
        async with self._taking:
            for job_id in fair_order(self._in_memory()):
                job = self._memory.get(job_id)
                if job is not None and job_id not in self._runs and self._has_a_hand:
                    self._begin(job)
            if self._shelf is not None and self._has_a_hand:
                with suppress(RedisGone):
                    await self._take_from(self._shelf)

    async def _take_from(self, shelf: RedisJobStore) -> None:
        for job_id in fair_order(await shelf.unfinished()):
            if not self._has_a_hand:
                return
            if job_id in self._memory or not await shelf.lease(job_id):
                continue
            job = await shelf.load(job_id)
            if job is None:
                await shelf.forget(job_id)
            else:
                self._memory.add(job)
                self._begin(job)

    @property
    def _has_a_hand(self) -> bool:
        return not self._stopped and len(self._runs) < self.config.running

    def _begin(self, job: Job) -> None:
        run = self._runs[job.id] = self._run_of(job)
        run.start(lambda: self._ran(job.id))

    def _ran(self, job_id: str) -> None:
        del self._runs[job_id]
        if not self._stopped:
            self._in_background(self._take())

    def _run_of(self, job: Job) -> JobRunner:
        return JobRunner(job, self._service, self.config, self._tell, self._memory, self._shelf, self._clock)

    def _in_background(self, work: object) -> None:
        task = spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def new_job_id() -> str:
    """An id that nobody can guess, in the form that all have."""
    return uuid.uuid4().hex


def _out_of_reach() -> Overloaded:
    return Overloaded("this job may be kept in Redis, which does not answer; come back later")

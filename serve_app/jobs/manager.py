"""Manages jobs: batches that run though nobody waits for them, here or, where Redis keeps them, on any ingress.

Each process works on a few at a time (`runner.py`). Where Redis keeps jobs, they wait there, and a process with
capacity takes the next (`fair_order.py`) whose lease nobody holds: a new one, or one whose ingress has died. Entries
have seeds, so what was not finished is simply made again.
"""

import asyncio
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Final

from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.params import GenerationParams
from serve_app.config.sections import JobsConfig
from serve_app.generation.prepare import with_seed
from serve_app.jobs.callbacks import CallbackRequest, JobListener, Settlement
from serve_app.jobs.fair_order import QueuedJob, digest_of, next_round
from serve_app.jobs.job import Document, Job
from serve_app.jobs.pictures import NO_PICTURES, JobPictures
from serve_app.jobs.runner import Clock, Describe, JobRunner, finish_job, spawn
from serve_app.jobs.store import MAX_LISTED, JobStore
from serve_app.service import DiffusionService

log = logging.getLogger(__name__)

FOLLOW_S: Final = 0.5
CANCEL_S: Final = 3.0
RETRY_S: Final = 30.0

_ID: Final = re.compile(r"[0-9a-f]{32}")


class TooManyJobs(Exception):
    """The tenant has `limit` unfinished jobs, and may have no more."""

    def __init__(self, limit: int) -> None:
        super().__init__("too many jobs")
        self.limit = limit


class TooManyPictures(Exception):
    """The pictures of the tenant's unfinished jobs may have `limit` bytes, and no more."""

    def __init__(self, limit: int) -> None:
        super().__init__("too many pictures")
        self.limit = limit


class Jobs:
    """The jobs of `store`, and the runners of those that this process works on. Used on one event loop.

    `listener` hears of those whose callers want to be called back.
    Every method raises Overloaded where the store does.
    """

    def __init__(
        self,
        service: DiffusionService,
        config: JobsConfig,
        describe: Describe,
        store: JobStore,
        clock: Clock = time.time,
        listener: JobListener | None = None,
    ) -> None:
        self.config = config
        self._listener = listener
        self._service, self._describe, self._store, self._clock = service, describe, store, clock
        self._runs: dict[str, JobRunner] = {}
        self._arriving: Counter[str] = Counter()
        self._arriving_bytes: Counter[str] = Counter()
        self._beginning = asyncio.Lock()
        # asyncio keeps weak references only.
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def start(self) -> None:
        """Begins to look for jobs that others have left behind, and to let go of old ones."""
        self._start_task(self._look_after_jobs())

    async def stop(self) -> None:
        """Ends the work here. Jobs in Redis are left to others; those that are here only are lost."""
        self._stopped = True
        runs = list(self._runs.values())
        for run in runs:
            run.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(run.ended() for run in runs), *self._tasks, return_exceptions=True)
        if lost := self._store.only_here:
            log.warning("%d unfinished jobs were in this process only, and end with it", len(lost))

    async def submit(
        self,
        job_id: str,
        params: Mapping[int, GenerationParams],
        refused: Mapping[int, Document],
        tenant: str,
        callbacks: CallbackRequest | None = None,
        pictures: JobPictures = NO_PICTURES,
        drawn: Collection[int] = (),
    ) -> Job:
        """Creates a job of these entries, some of which were `refused` when they were read.

        Raises Overloaded where many wait, or their pictures leave no room; TooManyJobs and TooManyPictures where that
        is the tenant's own doing.

        `job_id` is `new_job_id`'s. Seeds are drawn now, but for the `drawn` entries, which have theirs: whichever
        process makes an entry, and however often, makes the same images.
        """
        seeded = {index: with_seed(each) for index, each in params.items()}
        unseeded = frozenset(index for index, each in params.items() if each.seed != seeded[index].seed)
        entries = len(params) + len(refused)
        job = Job(job_id, tenant, self._clock(), entries, seeded, callbacks, pictures, unseeded.union(drawn))
        for index, document in refused.items():
            job.add(index, document, ())
        self._arriving[tenant] += 1
        self._arriving_bytes[tenant] += pictures.size
        try:
            unfinished = await self._store.unfinished()
            self._check_room(unfinished, tenant)
            if pictures.size:
                self._check_room_for_pictures(unfinished, tenant, pictures.size)
            job.round = next_round(unfinished, digest_of(tenant))
            await self._store.add(job)
        finally:
            self._arriving[tenant] -= 1
            self._arriving_bytes[tenant] -= pictures.size
            # Without their zeros, or they would hold every tenant that ever came.
            self._arriving += Counter()
            self._arriving_bytes += Counter()
        await self._begin_jobs()
        return await self._now(job)

    def _check_room(self, unfinished: Sequence[QueuedJob], tenant: str) -> None:
        if len(unfinished) + self._arriving.total() > self.config.waiting:
            raise Overloaded("too many jobs are waiting; come back later", RETRY_S)
        own = sum(each.tenant == digest_of(tenant) for each in unfinished) + self._arriving[tenant]
        if tenant and own > self.config.waiting_per_tenant:
            raise TooManyJobs(self.config.waiting_per_tenant)

    def _check_room_for_pictures(self, unfinished: Sequence[QueuedJob], tenant: str, size: int) -> None:
        if sum(each.picture_bytes for each in unfinished) + self._arriving_bytes.total() > self.config.max_bytes:
            raise Overloaded("the pictures of waiting jobs leave no room for these; come back later", RETRY_S)
        limit = self.config.picture_bytes_per_tenant
        own = sum(each.picture_bytes for each in unfinished if each.tenant == digest_of(tenant))
        # One set is always taken: however long its caller waited, it would not become smaller.
        if tenant and own + self._arriving_bytes[tenant] > max(limit, size):
            raise TooManyPictures(limit)

    async def find(self, job_id: str, tenant: str) -> Job | None:
        """Returns the tenant's job of that id."""
        if not _ID.fullmatch(job_id):
            return None
        job = await self._store.find(job_id)
        return job if job is not None and job.tenant == tenant else None

    async def of_tenant(self, tenant: str) -> list[Job]:
        """Returns the tenant's newest jobs, the newest first."""
        return await self._store.of_tenant(tenant, MAX_LISTED)

    async def files(self, job: Job, index: int) -> tuple[bytes, ...] | None:
        """Returns the image files of an entry, in its document's order; None where there are none (any more)."""
        return await self._store.files(job.id, index)

    async def settlements(self, job: Job) -> Mapping[str, Settlement]:
        """Returns what has come of the job's callbacks so far, by their places."""
        if self._listener is None or job.callbacks is None:
            return {}
        return await self._listener.settlements(job)

    async def cancel(self, job_id: str, tenant: str) -> Job | None:
        """Ends the tenant's job, unless it is over already; None where there is none. What is done is kept.

        Another ingress hears of it within a second; where it takes longer to end, the job is returned as it is.
        """
        job = await self.find(job_id, tenant)
        if job is None or job.over:
            return job
        if job_id in self._runs:
            run = self._runs[job_id]
            run.cancel()
            await run.ended()
        elif await self._store.claim(job):
            job.end(self._clock(), cancelled=True)
            await finish_job(job, self._store, self._listener)
        else:
            await self._store.request_cancel(job)
            await self._wait_for_end(job)
        return await self._now(job)

    async def follow(self, job_id: str, tenant: str) -> AsyncGenerator[Job, None]:
        """Yields the job now, and again whenever it may have changed, to its end. Nothing where there is none."""
        while (job := await self.find(job_id, tenant)) is not None:
            # The consumer takes a while with it, and must get its end as well.
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

    async def _wait_for_end(self, job: Job) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_S), aclosing(self.follow(job.id, job.tenant)) as states:
                async for _ in states:
                    pass

    async def _look_after_jobs(self) -> None:
        while True:
            try:
                await self._store.expire(self._clock())
                await self._begin_jobs()
            except Exception:
                log.exception("unexpected error while looking after jobs")
            await asyncio.sleep(self.config.lease_s / 3)

    async def _begin_jobs(self) -> None:
        """Begins jobs while there is capacity."""
        async with self._beginning, aclosing(self._store.claim_jobs(self._runs, self._has_capacity)) as jobs:
            async for job in jobs:
                self._begin(job)

    def _has_capacity(self) -> bool:
        return not self._stopped and len(self._runs) < self.config.running

    def _begin(self, job: Job) -> None:
        run = self._runs[job.id] = JobRunner(
            job, self._service, self.config, self._describe, self._store, self._clock, self._listener
        )
        run.start(lambda: self._end_run(job.id))

    def _end_run(self, job_id: str) -> None:
        del self._runs[job_id]
        if not self._stopped:
            self._start_task(self._begin_jobs())

    def _start_task(self, work: object) -> None:
        task = spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def new_job_id() -> str:
    """Draws an id that nobody can guess, in the form that all have."""
    return uuid.uuid4().hex

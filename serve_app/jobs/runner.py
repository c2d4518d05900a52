"""One job being worked on in this process: its entries are made, each is saved as it ends, and the lease is held."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing, suppress
from contextvars import Context
from typing import Any, Final

from deployments.engine.protocol.errors import Overloaded
from serve_app.config.sections import JobsConfig
from serve_app.jobs.batch import Batch, Outcome
from serve_app.jobs.job import Document, Job
from serve_app.jobs.memory_store import MemoryJobStore
from serve_app.jobs.redis_store import RedisJobStore
from serve_app.service import DiffusionService
from serve_app.store.redis import RedisGone
from serve_app.tasks import cancel_and_wait

log = logging.getLogger(__name__)

Clock = Callable[[], float]
Tell = Callable[[Job, int, Outcome], tuple[Document, tuple[bytes, ...]]]
"""How an entry's outcome is told: its document, and the pictures that belong to it."""

BEAT_S: Final = 1.0


class LeaseLost(Exception):
    """Another ingress works on the job: this one may have been taken for dead."""


class JobRunner:
    """Works on `job` once `start` is called. Where Redis does not answer it goes on, and the job is not `durable`."""

    def __init__(
        self,
        job: Job,
        service: DiffusionService,
        config: JobsConfig,
        tell: Tell,
        memory: MemoryJobStore,
        shelf: RedisJobStore | None,
        clock: Clock,
    ) -> None:
        self.job = job
        self._service, self._config, self._tell = service, config, tell
        self._memory, self._shelf, self._clock = memory, shelf, clock
        self._batch: Batch | None = None
        self._before = 0
        self._cancelled = self._stopped = False
        self._working = False
        self._task: asyncio.Task[None] | None = None

    def start(self, over: Callable[[], object]) -> None:
        """Begins; `over` is called at the end."""
        self.job.begin(self._clock(), self._progress)
        self._task = spawn(self._run())
        self._task.add_done_callback(lambda _: over())

    def cancel(self) -> None:
        """The job is to end, and what is done is kept."""
        self._cancelled = True
        self.stop()

    def stop(self) -> None:
        """This process is to leave the job to others, as it is."""
        self._stopped = True
        # A task that is cancelled before its first step would never know why.
        if self._task is not None and self._working:
            self._task.cancel()

    async def ended(self) -> None:
        """Returns when nothing more is done here."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def settle(self) -> None:
        """The job is over: off to the shelf with it, or else it stays here."""
        job = self.job
        try:
            await self._save()
            if self._shelf is not None and job.durable:
                await self._shelf.finish(job)
                self._memory.drop(job)
        except LeaseLost:
            self._memory.drop(job)
        except RedisGone:
            job.durable = False

    async def _run(self) -> None:
        job = self.job
        try:
            self._working = True
            if self._stopped:
                raise asyncio.CancelledError
            await self._make()
            job.end(self._clock())
        except LeaseLost:
            log.warning("job %s: another ingress has taken it up", job.id)
            self._memory.drop(job)
            return
        except asyncio.CancelledError:
            if not self._cancelled:
                await self._give_back()
                raise
            job.end(self._clock(), cancelled=True)
        except Exception:
            log.exception("job %s: unexpected error", job.id)
            job.end(self._clock())
        await self.settle()

    async def _make(self) -> None:
        job, config = self.job, self._config
        age_s = max(0.0, self._clock() - job.created)
        self._before = len(job.documents)
        self._batch = batch = Batch(
            self._service, job.left, name=job.id, tenant=job.tenant, in_flight=config.in_flight, age_s=age_s
        )
        renew_lease = spawn(self._beat())
        try:
            async with aclosing(batch.outcomes()) as outcomes:
                async for index, outcome in outcomes:
                    self._add(index, outcome)
                    await self._save()
        finally:
            await cancel_and_wait(renew_lease)

    def _progress(self) -> float:
        if self._batch is None:
            return self.job.told_progress
        return (self._before + self._batch.progress * (self.job.entries - self._before)) / self.job.entries

    def _add(self, index: int, outcome: Outcome) -> None:
        document, files = self._tell(self.job, index, outcome)
        if not self._memory.has_room(sum(len(file) for file in files)):
            document, files = self._tell(self.job, index, Overloaded("there is no room to keep this result"))
        self.job.add(index, document, files)

    async def _beat(self) -> None:
        """Holds the lease, and listens whether somebody has asked, on another ingress, for the job's end."""
        job, shelf = self.job, self._shelf
        while shelf is not None:
            try:
                match await shelf.renew_lease(job):
                    case "ours":
                        job.durable = not job.unsaved
                    case "cancel":
                        self.cancel()
                    case "lost":
                        self._memory.drop(job)
                        self.stop()
                    case "missing":
                        await shelf.put(job)
            except RedisGone:
                job.durable = False
            await asyncio.sleep(min(BEAT_S, self._config.lease_s / 3))

    async def _save(self) -> None:
        """What is new of the job. Raises LeaseLost."""
        if self._shelf is None:
            return
        try:
            if not await self._shelf.save(self.job):
                await self._save_anew(self._shelf)
            self.job.durable = True
        except RedisGone:
            self.job.durable = False

    async def _save_anew(self, shelf: RedisJobStore) -> None:
        """The lease has run out, or Redis has lost its memory: goes on if nobody else has taken the job."""
        if await shelf.renew_lease(self.job) == "missing":
            await shelf.put(self.job)
        if not await shelf.lease(self.job.id) or not await shelf.save(self.job):
            raise LeaseLost

    async def _give_back(self) -> None:
        """This process ends: others need not wait until the lease has run out."""
        if self._shelf is not None:
            with suppress(RedisGone):
                await self._shelf.release(self.job)


def spawn(work: Any) -> "asyncio.Task[None]":
    """A task of its own, and not in its caller's context: when that one's client leaves, Ray cancels all in it."""
    return asyncio.get_running_loop().create_task(work, context=Context())

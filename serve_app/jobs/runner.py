"""Runs one job in this process: makes its entries, saves each as it ends, and holds the lease."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from contextvars import Context
from typing import Any, Final

from deployments.engine.protocol.errors import Overloaded
from serve_app.config.sections import JobsConfig
from serve_app.jobs.batch import Batch, Outcome
from serve_app.jobs.callbacks import JobListener
from serve_app.jobs.job import Document, Job
from serve_app.jobs.store import JobStore, LeaseLost
from serve_app.service import DiffusionService
from serve_app.tasks import cancel_and_wait

log = logging.getLogger(__name__)

Clock = Callable[[], float]
Describe = Callable[[Job, int, Outcome], tuple[Document, tuple[bytes, ...]]]
"""Returns an entry's document for its outcome, and the image files that belong to it."""

RENEW_S: Final = 1.0


class JobRunner:
    """Works on `job` once `start` is called, whether or not `store` can save it just now. `listener` hears of it."""

    def __init__(
        self,
        job: Job,
        service: DiffusionService,
        config: JobsConfig,
        describe: Describe,
        store: JobStore,
        clock: Clock,
        listener: JobListener | None = None,
    ) -> None:
        self.job = job
        self._service, self._config, self._describe = service, config, describe
        self._store, self._clock, self._listener = store, clock, listener
        self._batch: Batch | None = None
        self._before = 0
        self._cancelled = self._stopped = False
        self._working = False
        self._task: asyncio.Task[None] | None = None

    def start(self, over: Callable[[], object]) -> None:
        """Starts working; `over` is called at the end."""
        if not self.job.over:
            self.job.begin(self._clock(), self._progress)
        self._task = spawn(self._run())
        self._task.add_done_callback(lambda _: over())

    def cancel(self) -> None:
        """Ends the job, and keeps what is done."""
        self._cancelled = True
        self.stop()

    def stop(self) -> None:
        """Leaves the job, as it is, to other processes."""
        self._stopped = True
        # A task that is cancelled before its first step would never know why.
        if self._task is not None and self._working:
            self._task.cancel()

    async def ended(self) -> None:
        """Waits until nothing more is done here."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        job = self.job
        try:
            self._working = True
            if self._stopped:
                raise asyncio.CancelledError
            # One whose process died before it had told of its end has ended all the same.
            if not job.over:
                await self._make()
                job.end(self._clock())
        except LeaseLost:
            log.warning("job %s: another ingress has taken it up", job.id)
            self._store.drop(job)
            return
        except asyncio.CancelledError:
            if not self._cancelled:
                await self._store.release(job)
                raise
            job.end(self._clock(), cancelled=True)
        except Exception:
            log.exception("job %s: unexpected error", job.id)
            job.end(self._clock())
        await finish_job(job, self._store, self._listener)

    async def _make(self) -> None:
        job, config = self.job, self._config
        age_s = max(0.0, self._clock() - job.created)
        self._before = len(job.documents)
        self._batch = batch = Batch(
            self._service,
            job.left,
            name=job.id,
            tenant=job.tenant,
            in_flight=config.in_flight,
            age_s=age_s,
            pictures=job.pictures,
            drawn=job.drawn,
        )
        holding = spawn(self._hold_lease())
        try:
            async with aclosing(batch.outcomes()) as outcomes:
                async for index, outcome in outcomes:
                    self._add(index, outcome)
                    await self._store.save(job)
                    if self._listener is not None and job.callbacks is not None:
                        await self._listener.entry_ended(job, index)
        finally:
            await cancel_and_wait(holding)

    def _progress(self) -> float:
        if self._batch is None:
            return self.job.last_progress
        return (self._before + self._batch.progress * (self.job.entries - self._before)) / self.job.entries

    def _add(self, index: int, outcome: Outcome) -> None:
        document, files = self._describe(self.job, index, outcome)
        if not self._store.has_room(sum(len(file) for file in files)):
            document, files = self._describe(self.job, index, Overloaded("there is no room to keep this result"))
        self.job.add(index, document, files)

    async def _hold_lease(self) -> None:
        """Renews the lease, and ends the job where somebody has asked for that on another ingress."""
        while True:
            match await self._store.renew_lease(self.job):
                case "cancel":
                    self.cancel()
                case "lost":
                    self._store.drop(self.job)
                    self.stop()
                case "ours":
                    pass
            await asyncio.sleep(min(RENEW_S, self._config.lease_s / 3))


async def finish_job(job: Job, store: JobStore, listener: JobListener | None) -> None:
    """Keeps a job that is over, and has `listener` hear of it.

    In this order: who is called back finds it as it was left, and a process that dies on the way leaves a job that
    another one takes up, and says the same of.
    """
    if listener is not None and job.callbacks is not None:
        try:
            await store.save(job)
        except LeaseLost:
            store.drop(job)
            return
        await listener.ended(job)
    await store.finish(job)


def spawn(work: Any) -> "asyncio.Task[None]":
    """Starts a task outside the caller's context: when that one's client leaves, Ray cancels all that runs in it."""
    return asyncio.get_running_loop().create_task(work, context=Context())

"""Keeps jobs in this process' memory only: they live and end with it."""

from collections.abc import AsyncGenerator, Callable, Collection

from serve_app.jobs.fair_order import QueuedJob, fair_order
from serve_app.jobs.job import Job
from serve_app.jobs.local_jobs import LocalJobs
from serve_app.jobs.store import LeaseState


class MemoryJobStore:
    """A `JobStore` without Redis. Nobody else works on its jobs, so leases are always held."""

    def __init__(self, local: LocalJobs) -> None:
        self._local = local

    @property
    def only_here(self) -> list[Job]:
        return self._local.unfinished

    async def add(self, job: Job) -> None:
        self._local.add(job)

    async def find(self, job_id: str) -> Job | None:
        return self._local.find(job_id)

    async def of_tenant(self, tenant: str, most: int) -> list[Job]:
        return self._local.of_tenant(tenant)[:most]

    async def files(self, job_id: str, index: int) -> tuple[bytes, ...] | None:
        job = self._local.get(job_id)
        return None if job is None else job.files.get(index)

    async def unfinished(self) -> list[QueuedJob]:
        return self._local.queue

    async def claim_jobs(self, running: Collection[str], has_capacity: Callable[[], bool]) -> AsyncGenerator[Job, None]:
        for job_id in fair_order(self._local.queue):
            if not has_capacity():
                return
            job = self._local.get(job_id)
            if job is not None and job_id not in running:
                yield job

    async def claim(self, job: Job) -> bool:
        return True

    async def request_cancel(self, job: Job) -> None:
        """Nobody else works on it."""

    async def renew_lease(self, job: Job) -> LeaseState:
        return "ours"

    async def save(self, job: Job) -> None:
        """It is here."""

    async def finish(self, job: Job) -> None:
        """It stays here until it expires."""

    async def release(self, job: Job) -> None:
        """It ends with this process."""

    def drop(self, job: Job) -> None:
        self._local.drop(job)

    def has_room(self, size: int) -> bool:
        return self._local.has_room(size)

    async def expire(self, now: float) -> None:
        self._local.expire(now)

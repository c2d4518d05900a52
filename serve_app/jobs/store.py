"""Where jobs are kept: what their manager and runners need of it, and nothing of how."""

from collections.abc import AsyncGenerator, Callable, Collection
from typing import Final, Literal, Protocol

from serve_app.jobs.fair_order import QueuedJob
from serve_app.jobs.job import Job

MAX_LISTED: Final = 100
"""The most jobs of one tenant that are listed."""

LeaseState = Literal["ours", "cancel", "lost"]
"""Of a job being worked on: still ours; ours, and somebody has asked for its end; or another process'."""


class LeaseLost(Exception):
    """Another process works on the job: this one may have been taken for dead."""


class JobStore(Protocol):
    """Used on one event loop. Every method raises Overloaded where it would need Redis, which does not answer, or a job
    that only another version of this service can read.
    """

    @property
    def only_here(self) -> list[Job]:
        """The unfinished jobs that end with this process."""

    async def add(self, job: Job) -> None:
        """Keeps a new job; `durable` says afterwards whether it outlives this process."""

    async def find(self, job_id: str) -> Job | None:
        """The job of that id, with the number of jobs `ahead` of it."""

    async def of_tenant(self, tenant: str, most: int) -> list[Job]:
        """The tenant's newest jobs, the newest first."""

    async def files(self, job_id: str, index: int) -> tuple[bytes, ...] | None:
        """The images of a job's entry, in its document's order; None where there are none (any more)."""

    async def unfinished(self) -> list[QueuedJob]:
        """The jobs that run or wait, in the order of their coming."""

    def claim_jobs(self, running: Collection[str], has_capacity: Callable[[], bool]) -> AsyncGenerator[Job, None]:
        """Leases jobs to this process in their order, and yields each, as long as it `has_capacity` for one more.

        `running` are the ids of those that run here already.
        """

    async def claim(self, job: Job) -> bool:
        """Whether nobody works on the job: then it is this process' to end."""

    async def request_cancel(self, job: Job) -> None:
        """Asks whichever process works on the job to end it."""

    async def renew_lease(self, job: Job) -> LeaseState:
        """Holds the lease a while longer, and publishes how far the job is."""

    async def save(self, job: Job) -> None:
        """Saves what is new of the job. Raises LeaseLost."""

    async def finish(self, job: Job) -> None:
        """Keeps a job that is over for a while."""

    async def release(self, job: Job) -> None:
        """Leaves the job to other processes."""

    def drop(self, job: Job) -> None:
        """Forgets, in this process, a job that another one works on."""

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes of results can be kept here; makes room for them where that is possible."""

    async def expire(self, now: float) -> None:
        """Lets go of jobs that were kept long enough, and saves those that could not be when it was time."""

"""Holds jobs in this process' memory, bounded in time, number and bytes."""

from collections.abc import Iterator

from serve_app.config.sections import JobsConfig
from serve_app.jobs.fair_order import QueuedJob, digest_of, fair_order
from serve_app.jobs.job import Job


class LocalJobs:
    """Finished jobs leave after `keep_s` seconds; and earlier, the oldest first, when they are more than `kept`, or
    when all their results together take more than `max_bytes`.
    """

    def __init__(self, config: JobsConfig) -> None:
        self._keep_s, self._kept, self._max_bytes = config.keep_s, config.kept, config.max_bytes
        self._jobs: dict[str, Job] = {}

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def __iter__(self) -> Iterator[Job]:
        """In the order of their creation."""
        return iter(sorted(self._jobs.values(), key=lambda job: job.created))

    @property
    def unfinished(self) -> list[Job]:
        """The jobs that run or wait, in the order of their creation."""
        return [job for job in self if not job.over]

    @property
    def queue(self) -> list[QueuedJob]:
        """The unfinished jobs, as the fair order knows them."""
        return [QueuedJob(job.id, digest_of(job.tenant), job.round, job.pictures.size) for job in self.unfinished]

    def get(self, job_id: str) -> Job | None:
        """Returns the job of that id."""
        return self._jobs.get(job_id)

    def find(self, job_id: str) -> Job | None:
        """Returns the job of that id, with the number of jobs `ahead` of it."""
        job = self._jobs.get(job_id)
        if job is not None and job.state == "queued":
            job.ahead = fair_order(self.queue).index(job.id)
        return job

    def of_tenant(self, tenant: str) -> list[Job]:
        """Returns the tenant's jobs, the newest first."""
        return [job for job in self if job.tenant == tenant][::-1]

    def add(self, job: Job) -> None:
        """Adds a job."""
        self._jobs[job.id] = job

    def drop(self, job: Job) -> None:
        """Forgets a job."""
        self._jobs.pop(job.id, None)

    def expire(self, now: float) -> None:
        """Lets go of what has been kept long enough, and of what is too many."""
        finished = self._finished()
        for number, job in enumerate(finished, start=1):
            assert job.finished is not None
            if now - job.finished > self._keep_s or len(finished) - number >= self._kept:
                self.drop(job)

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes of results can be kept; makes room for them where that is possible.

        What is saved elsewhere leaves first, then finished jobs, the oldest first.
        """
        held = sum(job.size for job in self) + size
        for job in self:
            if held > self._max_bytes:
                held -= _release_files(job)
        for job in self._finished():
            if held > self._max_bytes:
                held -= job.size
                self.drop(job)
        return held <= self._max_bytes

    def _finished(self) -> list[Job]:
        return sorted((job for job in self if job.over), key=lambda job: job.finished or 0.0)


def _release_files(job: Job) -> int:
    """Drops the image files that are saved elsewhere, and returns their bytes."""
    before = job.size
    if job.durable:
        job.files = {index: files for index, files in job.files.items() if index in job.unsaved}
    return before - job.size

"""Simulates a replica of a usual server: a batch of like requests runs its steps together, and none joins.

In its favour: batches are gathered from all that wait, oldest first; they are not padded; and an idle device starts at
once, without the timeout of `serve.batch`.
"""

import math

from bench.simulation.devices import Device
from bench.simulation.job import Clock, Finish, Job, Usage
from deployments.engine.protocol.errors import Overloaded
from deployments.engine.scheduling.cost_model import CostModel

NEVER = math.inf


class WholeReplica:
    """`next_at` is when it wants to `advance`; `ongoing` are the requests that it has."""

    def __init__(self, device: Device, costs: CostModel, clock: Clock, finish: Finish, queue_limit: int) -> None:
        self.next_at = NEVER
        self.usage = Usage()
        self.calls = 0
        self.worked = 0.0
        self._device, self._costs, self._clock, self._finish = device, costs, clock, finish
        self._limit = queue_limit
        self._jobs: list[Job] = []
        self._batch: list[Job] = []

    @property
    def ongoing(self) -> int:
        return len(self._jobs) + len(self._batch)

    @property
    def backlog(self) -> float:
        """Seconds of a full device that wait."""
        return sum(job.cost for job in self._jobs)

    def arrive(self, job: Job) -> None:
        """Takes a job in. Raises Overloaded."""
        if len(self._jobs) >= self._limit:
            raise Overloaded("the queue is full")
        self._jobs.append(job)
        if not self._batch:
            self.next_at = self._clock.now

    def advance(self) -> None:
        """Ends the batch, and begins the next."""
        done, self._batch = self._batch, []
        self.worked += sum(job.cost for job in done)
        for job in done:
            job.left = 0
            self._finish(job, self._clock.now)
        if not self._jobs:
            self.next_at = NEVER
            return
        self._batch = self._like_the_first()
        self.next_at = self._clock.now + self._run(self._batch)

    def _like_the_first(self) -> list[Job]:
        """The oldest, and whoever may run with it, as far as they fit; a batch takes what one request brings in any
        case.
        """
        first = self._jobs[0]
        most = max(self._costs.knee(first.kind.bucket), first.kind.unet_rows)
        batch, rows = [], 0
        for job in self._jobs:
            if job is first or (
                job.kind.merges_with == first.kind.merges_with and rows + job.kind.images * job.kind.unet_rows <= most
            ):
                batch.append(job)
                rows += job.kind.images * job.kind.unet_rows
        taken = set(map(id, batch))
        self._jobs = [job for job in self._jobs if id(job) not in taken]
        return batch

    def _run(self, batch: list[Job]) -> float:
        """Seconds for all of it: prompts, steps, pictures. More rows than pay run one call after the other."""
        kind = batch[0].kind
        rows = sum(job.kind.images * job.kind.unet_rows for job in batch)
        most = max(self._costs.knee(kind.bucket), kind.unet_rows)
        full, rest = divmod(rows, most)
        step = full * self._device.exactly(kind.bucket, most)
        step += self._device.exactly(kind.bucket, rest) if rest else 0.0
        self.calls += kind.steps * (full + bool(rest))
        pictures = sum(job.kind.images for job in batch) * self._device.decode[kind.bucket]
        seconds = len(batch) * self._device.prepare + kind.steps * step + pictures
        self.usage.useful += seconds
        return seconds

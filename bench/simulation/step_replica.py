"""Simulates a replica of our engine: any rows of one shape share UNet calls, and join and leave between calls.

The queue, the device's share among buckets, padded sizes and the knee are production code; what is simulated is time.
Equal calls in a row are simulated in one leap, up to the first row's end or the next arrival.
"""

import math
from collections.abc import Sequence

from bench.simulation.decoder import Decoder
from bench.simulation.devices import Device
from bench.simulation.job import Clock, Finish, Job, Row, Usage
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.row import Ticket
from deployments.engine.scheduling.bucket_share import BucketShare
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.fair_order import Arrival
from deployments.engine.scheduling.queue import RequestQueue

NEVER = math.inf


class RunningBucket:
    """The rows of one bucket, their UNet rows, and what calls of so many take."""

    __slots__ = ("calls", "rows", "used")

    def __init__(self, calls: Sequence[float]) -> None:
        self.rows: list[Row] = []
        self.used = 0
        self.calls = calls

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.used += row.unet_rows

    def keep(self, rows: list[Row]) -> None:
        """Keeps only these."""
        self.rows = rows
        self.used = sum(row.unet_rows for row in rows)


class Host:
    """A machine whose replicas share its cores: while n of them call, calls and pictures take `slower[n - 1]` times as
    long as a lone request's.
    """

    def __init__(self, slower: Sequence[float] = (1.0,)) -> None:
        self._slower = slower
        self._calling: set[int] = set()

    def called_by(self, replica: object) -> float:
        """Returns how long a call that begins now takes, as a multiple of its time alone."""
        self._calling.add(id(replica))
        return self.slowness

    @property
    def slowness(self) -> float:
        return self._slower[min(max(1, len(self._calling)), len(self._slower)) - 1]

    @property
    def is_even(self) -> bool:
        """Says whether calls are independent of other replicas' calls."""
        return len(set(self._slower)) == 1

    def left_by(self, replica: object) -> None:
        """Notes that this replica has nothing to call."""
        self._calling.discard(id(replica))


class StepReplica:
    """`next_at` is when it wants to `advance`; `ongoing` are the requests that it has; `worked` as in `Admission`."""

    def __init__(
        self,
        device: Device,
        costs: CostModel,
        clock: Clock,
        finish: Finish,
        queue_limit: int,
        host: Host | None = None,
    ) -> None:
        self.next_at = NEVER
        self.ongoing = 0
        self.usage = Usage()
        self.calls = 0
        self.worked = 0.0
        self._device, self._costs, self._clock, self._finish = device, costs, clock, finish
        self._host = host if host is not None else Host()
        self._queue = RequestQueue(queue_limit, clock)
        self._share = BucketShare()
        self._decoder = Decoder(device.overlap, self.usage, self._finished)
        self._jobs: dict[str, Job] = {}
        self._trays: dict[Bucket, RunningBucket] = {}
        self._paused: dict[tuple[str, int], Row] = {}
        self._unprepared = 0
        self._news = False
        self._called: Bucket | None = None
        self._begun = self._each = 0.0
        self._leap = 0

    @property
    def backlog(self) -> float:
        """Seconds of a full device that wait."""
        return self._queue.seconds

    def arrive(self, job: Job) -> None:
        """Takes a job in. Raises Overloaded."""
        self._queue.enqueue(job.request, job.cost)
        self._jobs[job.request.id] = job
        self._unprepared += 1
        self.ongoing += 1
        if self._called is None:
            self._decoder.interrupted(self._clock.now)
            self.next_at = self._clock.now
        elif self._leap > 1:
            # The call that runs is finished first; those that were to follow it are not yet begun.
            self._leap = max(1, math.ceil((self._clock.now - self._begun) / self._each - 1e-9))
            self.next_at = self._begun + self._leap * self._each

    def advance(self) -> None:
        """Simulates one round of the engine's loop at `next_at`: the last call ends, and the next begins."""
        if self._called is not None:
            self._step()
        else:
            self._decoder.interrupted(self._clock.now)
        seconds = self._prepare()
        if self._news:
            self._news = False
            self._admit()
        self._begin(seconds)

    def _step(self) -> None:
        """The rows that were called are further; those that are done leave for the decoder."""
        assert self._called is not None
        tray, leap = self._trays[self._called], self._leap
        seconds = leap * self._each
        useful = seconds * tray.used / self._device.padded[tray.used]
        self.calls += leap
        self.worked += leap * tray.used * self._device.row_seconds[self._called]
        self.usage.useful += useful
        self.usage.padding += seconds - useful
        self._share.charge(self._called, seconds, [self._queue.priority_of(row.ticket) for row in tray.rows])
        done = False
        for row in tray.rows:
            row.left -= leap
            done = done or not row.left
        if done:
            self._retire(self._called, tray)

    def _retire(self, bucket: Bucket, tray: RunningBucket) -> None:
        self._news = True
        for row in tray.rows:
            if not row.left:
                self._decoder.add(row.job, self._device.decode[bucket] * self._host.slowness)
        self._leave(bucket, [row for row in tray.rows if row.left])

    def _leave(self, bucket: Bucket, staying: list[Row]) -> None:
        self._trays[bucket].keep(staying)
        if not staying:
            del self._trays[bucket]

    def _prepare(self) -> float:
        """Prepares one arrival while rows run, else a call's worth; the seconds that it takes."""
        prepared = 0
        while (arrival := self._next_arrival()) is not None:
            self._queue.add(arrival)
            self._news = True
            prepared += 1
            if self._trays or self._queue.unet_rows >= self._device.sizes[-1]:
                break
        return prepared * self._device.prepare

    def _next_arrival(self) -> Arrival | None:
        if not self._unprepared:
            return None
        self._unprepared -= 1
        return self._queue.pop_arrival()

    def _admit(self) -> None:
        self._take()
        for bucket, tray in list(self._trays.items()):
            low = [row.ticket for row in tray.rows if row.job.request.params.priority == "low"]
            victims = self._queue.choose_victims(bucket, low, self._room) if low else []
            for ticket in victims:
                self._pause(ticket)
            if victims:
                self._take()
                return

    def _take(self) -> None:
        for ticket in self._queue.take(self._room):
            row = self._row(ticket)
            bucket = row.job.kind.bucket
            if bucket not in self._trays:
                self._trays[bucket] = RunningBucket(self._device.padded_calls[bucket])
            self._trays[bucket].add(row)

    def _row(self, ticket: Ticket) -> Row:
        paused = self._paused.pop((ticket.request.id, ticket.index), None)
        if paused is not None:
            return paused
        job = self._jobs[ticket.request.id]
        return Row(job, ticket.index, job.kind.steps, job.kind.unet_rows, ticket.due)

    def _pause(self, ticket: Ticket) -> None:
        bucket = ticket.request.bucket
        rows = self._trays[bucket].rows
        paused = next(row for row in rows if row.job.request is ticket.request and row.index == ticket.index)
        self._paused[ticket.request.id, ticket.index] = paused
        self._leave(bucket, [row for row in rows if row is not paused])
        self._queue.requeue(ticket)

    def _room(self, request: Request) -> int:
        most = max(self._costs.knee(request.bucket), request.unet_rows)
        tray = self._trays.get(request.bucket)
        return min(self._device.largest, most) - (tray.used if tray else 0)

    def _begin(self, preparing: float) -> None:
        """The next call; or all that are alike, where nothing but an arrival can come between."""
        now = self._clock.now
        self.usage.useful += preparing
        bucket = self._called = self._share.choose(self._trays)
        if bucket is None:
            self._host.left_by(self)
            self.next_at = self._decoder.rest(now) if self._decoder else NEVER
            return
        tray = self._trays[bucket]
        self._each = tray.calls[tray.used] * self._host.called_by(self)
        alone = len(self._trays) == 1 and not self._decoder and not self._unprepared and self._host.is_even
        self._leap = min([row.left for row in tray.rows]) if alone else 1
        self._begun = now + preparing
        self.next_at = self._decoder.beside(self._begun, self._leap * self._each)

    def _finished(self, job: Job, at: float) -> None:
        self.ongoing -= 1
        del self._jobs[job.request.id]
        self._finish(job, at)

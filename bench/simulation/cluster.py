"""Simulates a deployment: requests are routed, replicas come and go, and every second of every device is paid."""

import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final, Literal, Protocol

from bench.simulation.controller import Controller
from bench.simulation.devices import Device
from bench.simulation.job import Clock, Finish, Job, Usage
from bench.simulation.trace import Kind, Trace
from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.request import Request
from deployments.engine.scheduling.cost_model import CostModel

KEPT_S: Final = 60.0
"""How long a machine stays after its replica has left (the default of Ray's cluster autoscaler)."""

JITTER: Final = 0.15
"""Machines and loading take about as long every time: the standard deviation of the logarithm."""

REFUSED: Final = -1.0
"""In the place of a latency."""


class Replica(Protocol):
    """What both kinds of replica have in common."""

    next_at: float
    usage: Usage
    calls: int

    @property
    def ongoing(self) -> int: ...
    @property
    def worked(self) -> float: ...
    @property
    def backlog(self) -> float: ...
    def arrive(self, job: Job) -> None: ...
    def advance(self) -> None: ...


MakeReplica = Callable[[Device, CostModel, Clock, Finish, int], Replica]


@dataclass(slots=True, eq=False)
class Place:
    """A replica on its machine. It is paid from `paid_from` on, and usable from `ready_at` on."""

    replica: Replica
    paid_from: float
    asked_at: float
    ready_at: float
    state: Literal["starting", "running", "leaving", "gone"] = "starting"


@dataclass
class Run:
    """What came of a trace. `latencies` are by request, in seconds, REFUSED where there was none.

    Seconds of all devices: `paid`, of which `starting` went by before replicas were ready, `useful` and `padding` were
    worked, and the rest was idle. `seconds` went by until the last request had ended. `samples` are, now and then:
    seconds, replicas that run, replicas that are wanted.
    """

    trace: Trace
    latencies: "array[float]"
    seconds: float = 0.0
    paid: float = 0.0
    starting: float = 0.0
    useful: float = 0.0
    padding: float = 0.0
    calls: int = 0
    starts: int = 0
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def idle(self) -> float:
        return self.paid - self.starting - self.useful - self.padding


class Cluster:
    """One deployment. `queue_limit` is each replica's; `first` replicas are ready at the start."""

    def __init__(
        self,
        make: MakeReplica,
        device: Device,
        controller: Controller,
        trace: Trace,
        *,
        first: int = 1,
        queue_limit: int = 128,
        seed: int = 0,
    ) -> None:
        self._make, self._device, self._controller, self._trace = make, device, controller, trace
        self._limit = queue_limit
        self._costs = device.costs()
        self._clock = Clock()
        self._chance = random.Random(seed)
        self._places: list[Place] = []
        self._routable: list[Place] = []
        self._unrouted: list[Job] = []
        self._heap: list[tuple[float, int, Place]] = []
        self._pushed = 0
        self._machines: list[float] = []
        self._target = first
        self._kind_costs = [self._cost(kind) for kind in trace.kinds]
        self._run = Run(trace, array("d", bytes(8 * len(trace))))
        for _ in range(first):
            self._start(delay=0.0)

    def run(self) -> Run:
        """Simulates the trace, and goes on until every request has ended."""
        at, kinds, tenants = self._trace.at.tolist(), self._trace.kind.tolist(), self._trace.tenant.tolist()
        tick, number, count = 0.0, 0, len(self._trace)
        while number < count or self._busy() or tick <= self._trace.seconds:
            coming = at[number] if number < count else float("inf")
            due = self._heap[0][0] if self._heap else float("inf")
            if due <= coming and due <= tick:
                self._clock.now, _, place = heappop(self._heap)
                self._advance(place)
            elif coming <= tick:
                self._clock.now = coming
                self._arrive(number, self._trace.kinds[kinds[number]], self._kind_costs[kinds[number]], tenants[number])
                number += 1
            else:
                self._clock.now = tick
                self._scale()
                tick += self._controller.interval
        self._close()
        return self._run

    def _busy(self) -> bool:
        return bool(self._unrouted) or any(place.replica.ongoing for place in self._places)

    def _arrive(self, number: int, kind: Kind, cost: float, tenant: int) -> None:
        request = Request(str(number), kind.params, tenant=str(tenant))
        self._route(Job(number, kind, request, self._clock.now, cost))

    def _route(self, job: Job) -> None:
        """Sends it to the less busy of two, as Ray's router does."""
        if not self._routable:
            self._unrouted.append(job)
            return
        place = self._chance.choice(self._routable)
        if len(self._routable) > 1:
            other = self._chance.choice(self._routable)
            if other.replica.ongoing < place.replica.ongoing:
                place = other
        before = place.replica.next_at
        try:
            place.replica.arrive(job)
        except Overloaded:
            self._run.latencies[job.number] = REFUSED
            return
        if place.replica.next_at != before:
            self._push(place)

    def _advance(self, place: Place) -> None:
        """Advances a replica that is due: it has started, or it continues."""
        if place.state == "gone":
            return
        if place.state == "starting":
            if self._clock.now == place.ready_at:
                self._ready(place)
            return
        # What was pushed before it changed its mind is stale.
        if self._clock.now == place.replica.next_at:
            place.replica.advance()
            if place.replica.next_at != float("inf"):
                self._push(place)
        if place.state == "leaving" and not place.replica.ongoing:
            self._gone(place)

    def _push(self, place: Place, at: float | None = None) -> None:
        self._pushed += 1
        heappush(self._heap, (place.replica.next_at if at is None else at, self._pushed, place))

    def _scale(self) -> None:
        running = {id(place): place.replica for place in self._routable}
        now = self._clock.now
        self._target = self._controller.decide(now, running, len(self._unrouted), self._target)
        self._run.samples.append((now, len(self._routable), self._target))
        staying = [place for place in self._places if place.state != "leaving"]
        for _ in range(self._target - len(staying)):
            self._start()
        if len(staying) > self._target:
            # As Serve: first who is not ready, then who came last.
            order = sorted(staying, key=lambda place: (place.state == "starting", place.asked_at), reverse=True)
            for place in order[: len(staying) - self._target]:
                self._stop(place)
        self._machines = [until for until in self._machines if until > now]

    def _start(self, delay: float | None = None) -> None:
        now = self._clock.now
        self._machines = [until for until in self._machines if until > now]
        there = bool(self._machines)
        if there:
            # Paid until then already.
            paid_from = self._machines.pop(0)
            self._run.paid -= paid_from - now
        if delay is None:
            delay = self._about(self._device.cold_start) + (0.0 if there else self._about(self._device.provision))
        replica = self._make(self._device, self._costs, self._clock, self._ended, self._limit)
        place = Place(replica, now, now, now + delay)
        self._places.append(place)
        self._run.starts += 1
        self._push(place, place.ready_at)

    def _ready(self, place: Place) -> None:
        place.state = "running"
        self._run.starting += place.ready_at - place.paid_from
        self._routable.append(place)
        waiting, self._unrouted = self._unrouted, []
        for job in waiting:
            self._route(job)

    def _stop(self, place: Place) -> None:
        if place.state == "starting":
            self._run.starting += self._clock.now - place.paid_from
            self._gone(place)
            return
        place.state = "leaving"
        self._routable.remove(place)
        if not place.replica.ongoing:
            self._gone(place)

    def _gone(self, place: Place) -> None:
        """The replica has left; its machine stays for a while."""
        self._settle(place)
        self._places.remove(place)
        self._machines.append(self._clock.now + KEPT_S)
        self._run.paid += KEPT_S
        # What was pushed of it is stale.
        place.state = "gone"

    def _settle(self, place: Place) -> None:
        self._run.paid += self._clock.now - place.paid_from
        self._run.useful += place.replica.usage.useful
        self._run.padding += place.replica.usage.padding
        self._run.calls += place.replica.calls

    def _ended(self, job: Job, at: float) -> None:
        self._run.latencies[job.number] = at - job.at + self._device.http_seconds

    def _close(self) -> None:
        self._run.seconds = self._clock.now
        for place in self._places:
            if place.state == "starting":
                self._run.starting += self._clock.now - place.paid_from
            self._settle(place)

    def _cost(self, kind: Kind) -> float:
        """Returns the cost that the engine would give its queue."""
        return kind.images * kind.steps * kind.unet_rows * self._costs.row_seconds(kind.bucket)

    def _about(self, seconds: float) -> float:
        return seconds * self._chance.lognormvariate(0.0, JITTER)

"""Simulates in which order waiting requests will start if nothing else arrives, from a copy of the queue."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final

from deployments.engine.protocol.request import Request
from deployments.engine.row import Ticket
from deployments.engine.scheduling.fair_order import Arrival, TenantTurn, next_turn

FORESEEN: Final = 64
"""The most waiting requests of which is predicted when they start: one far back learns its place once it is nearer."""


@dataclass(frozen=True, slots=True)
class WaitingRequest:
    """An arrival as it was when its queue was copied: how many images were left, and which turn of its tenant's affects
    it.
    """

    arrival: Arrival
    images: int
    turn: TenantTurn


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """What a queue held at `now`: another thread may read this while the queue goes on.

    `nearest` are those that may come first, as they were added; `patience` counts the waiting requests of their
    tenants. `length` and `seconds` are of all that wait.
    """

    now: float
    nearest: Sequence[WaitingRequest]
    returned: Sequence[Ticket]
    patience: Mapping[str, Counter[float]]
    length: int
    seconds: float

    def without(self, others: Mapping[str, Arrival]) -> "QueueSnapshot":
        """Returns what the queue would be if it did not hold `others`, of which no image has begun."""
        if not others:
            return self
        patience = {tenant: counts.copy() for tenant, counts in self.patience.items()}
        for other in others.values():
            patience[other.request.tenant][other.patience] -= 1
        return replace(
            self,
            nearest=[waiting for waiting in self.nearest if waiting.arrival.request.id not in others],
            patience=patience,
            length=self.length - len(others),
            seconds=self.seconds - sum(other.cost for other in others.values()),
        )

    def predict_order(self) -> list[tuple[Request, int]]:
        """Returns the waiting requests in the order in which they are likely to start, each with its number of waiting
        images: the first `FORESEEN` of them.
        """
        out = [(ticket.due, i, ticket.request, 1) for i, ticket in enumerate(self.returned)]
        out += [
            (rank, len(out) + i, waiting.arrival.request, waiting.images)
            for i, (rank, waiting) in enumerate(islice(self._simulate(), FORESEEN))
        ]
        in_order = sorted(out, key=lambda entry: entry[:2])
        return [(request, images) for _, _, request, images in in_order[:FORESEEN]]

    def _simulate(self) -> Iterator[tuple[float, WaitingRequest]]:
        """Yields the waiting requests in the order of starting, with ranks.

        These never fall: every turn is later than the last.
        """
        now = self.now
        tenants: dict[str, _Tenant] = {}
        for place, waiting in sorted(enumerate(self.nearest), key=lambda entry: entry[1].arrival.due):
            name = waiting.arrival.request.tenant
            if name not in tenants:
                tenants[name] = _Tenant(self.patience[name].copy())
            tenants[name].add(place, waiting)
        last = 0.0
        heap = [(*tenant.head(now), name) for name, tenant in tenants.items()]
        heapify(heap)
        while heap:
            rank, _, name = heappop(heap)
            first = tenants[name].pop(now)
            last = max(last, rank)
            yield last, first
            now += first.arrival.cost
            if tenants[name]:
                heappush(heap, (*tenants[name].head(now), name))


class _Tenant:
    """One tenant's requests, taken out in their order. `patience` counts them by their patience."""

    def __init__(self, patience: Counter[float]) -> None:
        self._waiting: deque[tuple[int, WaitingRequest]] = deque()
        self._due: list[tuple[tuple[float, float], int, WaitingRequest]] = []
        self._turn: TenantTurn | None = None
        self._patience = patience

    def add(self, place: int, waiting: WaitingRequest) -> None:
        """Adds a request that is due after those already there."""
        self._waiting.append((place, waiting))

    def __bool__(self) -> bool:
        """Returns True if any request is left."""
        return bool(self._waiting or self._due)

    def head(self, now: float) -> tuple[float, int]:
        """Returns the rank of the first request, and its place among all."""
        while self._waiting and self._waiting[0][1].arrival.due <= now:
            place, first = self._waiting.popleft()
            heappush(self._due, (first.arrival.order_key(now), place, first))
        place, first = self._due[0][1:] if self._due else self._waiting[0]
        return first.arrival.rank(self._urgency, self._turn or first.turn, first.images), place

    def pop(self, now: float) -> WaitingRequest:
        """Takes out the first request, and moves the tenant's turn on."""
        self.head(now)
        _, first = heappop(self._due)[1:] if self._due else self._waiting.popleft()
        self._turn = next_turn(self._turn or first.turn, now, first.arrival.cost, self._urgency)
        self._patience[first.arrival.patience] -= 1
        return first

    @property
    def _urgency(self) -> float:
        return min(patience for patience, number in self._patience.items() if number)

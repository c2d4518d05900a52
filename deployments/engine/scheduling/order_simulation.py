"""Simulates in which order waiting requests will start if nothing else arrives."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush

from deployments.engine.scheduling.fair_order import Arrival, TenantTurn, next_turn


def simulate_order(waiting: Iterable[Arrival], now: float) -> Iterator[tuple[float, Arrival]]:
    """Yields the waiting requests in the order of starting, with ranks.

    These never fall: every turn is later than the last.
    """
    tenants: dict[str, _Tenant] = {}
    for place, arrival in sorted(enumerate(waiting), key=lambda entry: entry[1].due):
        tenants.setdefault(arrival.request.tenant, _Tenant()).add(place, arrival)
    last = 0.0
    heap = [(*tenant.head(now), name) for name, tenant in tenants.items()]
    heapify(heap)
    while heap:
        rank, _, name = heappop(heap)
        arrival = tenants[name].pop(now)
        last = max(last, rank)
        yield last, arrival
        now += arrival.cost
        if tenants[name]:
            heappush(heap, (*tenants[name].head(now), name))


class _Tenant:
    """One tenant's requests, taken out in their order."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, Arrival]] = deque()
        self._due: list[tuple[tuple[float, float], int, Arrival]] = []
        self._turn: TenantTurn | None = None
        self._patience: Counter[float] = Counter()

    def add(self, place: int, arrival: Arrival) -> None:
        """Adds a request that is due after those already there."""
        self.waiting.append((place, arrival))
        self._patience[arrival.patience] += 1

    def __bool__(self) -> bool:
        """Returns True if any request is left."""
        return bool(self.waiting or self._due)

    def head(self, now: float) -> tuple[float, int]:
        """Returns the rank of the first request, and its place among all."""
        while self.waiting and self.waiting[0][1].due <= now:
            place, arrival = self.waiting.popleft()
            heappush(self._due, (arrival.order_key(now), place, arrival))
        place, arrival = self._due[0][1:] if self._due else self.waiting[0]
        return arrival.rank(self._urgency, self._turn), place

    def pop(self, now: float) -> Arrival:
        """Takes out the first request, and moves the tenant's turn on."""
        self.head(now)
        _, arrival = heappop(self._due)[1:] if self._due else self.waiting.popleft()
        self._turn = next_turn(self._turn or arrival.turn, now, arrival.cost, self._urgency)
        self._patience[arrival.patience] -= 1
        return arrival

    @property
    def _urgency(self) -> float:
        return min(patience for patience, number in self._patience.items() if number)

"""Ranks waiting requests, fairly among tenants.

A request is *due* at arrival + PATIENCE[priority] + cost. Its rank is that, or later if its tenant has just had a turn,
so that a flood of requests waits behind itself:

    rank = max(arrival + patience, its tenant's turn + its remaining patience) + cost

A tenant's next turn comes once the device could have made what the tenant was given last (fair queueing: Demers, Keshav
and Shenker, 1989). Three rules keep requests from starving behind more urgent ones of their own tenant:

- A request that waits beside more urgent ones of its tenant needs no more patience after a turn than they do: a turn
  belongs to the tenant, and goes to whichever of its requests is due.
- A request that has started needs no patience for its other images.
- Once a tenant's first request in a bucket is due, what the tenant gets in other buckets no longer delays it.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple

from deployments.engine.protocol.params import Priority
from deployments.engine.protocol.request import Bucket, Request

PATIENCE: Final[Mapping[Priority, float]] = {"high": 0.0, "normal": 30.0, "low": 120.0}
"""Seconds by which an image lets later ones of a higher priority go first."""

LEAD: Final = 120.0
"""The most seconds by which a tenant's turn lies in the future, however wrong the predicted costs are."""


class TenantTurn(NamedTuple):
    """A tenant's next turn, and the patience of the most urgent request that it had when it got the last one."""

    at: float
    patience: float


NO_TURN: Final = TenantTurn(-inf, inf)


@dataclass(slots=True)
class Arrival:
    """A request with images that wait. `at` is when it arrived (the queue's clock), `cost` the device's seconds for it,
    and `turn` its tenant's turn as far as it affects this request. From `due` on, no later request of the tenant
    overtakes it.
    """

    request: Request
    at: float
    cost: float
    turn: TenantTurn = NO_TURN
    images: deque[int] = field(default_factory=deque)
    patience: float = field(init=False)
    due: float = field(init=False)

    def __post_init__(self) -> None:
        self.patience = PATIENCE[self.request.params.priority]
        self.due = self.at + self.patience + self.cost

    def order_key(self, now: float) -> tuple[float, float]:
        """Returns the key that orders a tenant's requests: due ones first, by arrival; then the others, by due time."""
        return (self.at if self.due <= now else self.due), self.due

    @property
    def image_cost(self) -> float:
        return self.cost / self.request.params.num_images

    def rank(self, urgency: float, turn: TenantTurn | None = None) -> float:
        """Returns the rank; the lowest goes first.

        `urgency` is the least patience among the tenant's waiting requests.
        """
        turn = turn or self.turn
        begun = len(self.images) < self.request.params.num_images
        left = 0.0 if begun else min(self.patience, urgency, turn.patience)
        return max(self.at + self.patience, turn.at + left) + self.cost


class TenantTurns:
    """The turns of tenants who have had an image lately."""

    def __init__(self) -> None:
        self._turns: dict[str, TenantTurn] = {}

    def of(self, tenant: str) -> TenantTurn:
        """Returns the tenant's next turn."""
        return self._turns.get(tenant, NO_TURN)

    def charge(self, served: Arrival, now: float, waiting: Iterable[Arrival]) -> None:
        """Moves the tenant's turn on for one image of `served`, which is one of those `waiting`."""
        tenant = served.request.tenant
        tenants, own = set[str](), list[Arrival]()
        for arrival in waiting:
            tenants.add(arrival.request.tenant)
            if arrival.request.tenant == tenant:
                own.append(arrival)
        turn = next_turn(self.of(tenant), now, served.image_cost, urgency_of(own))
        heads: dict[Bucket, Arrival] = {}
        for arrival in own:
            first = heads.setdefault(arrival.request.bucket, arrival)
            if arrival.order_key(now) < first.order_key(now):
                heads[arrival.request.bucket] = arrival
        for arrival in own:
            bucket = arrival.request.bucket
            if bucket == served.request.bucket or arrival is not heads[bucket] or arrival.due > now:
                arrival.turn = turn
        self._turns[tenant] = turn
        # A turn that has come means nothing any more, unless older requests of the tenant still wait.
        self._turns = {name: turn for name, turn in self._turns.items() if turn.at > now or name in tenants}


def next_turn(turn: TenantTurn, now: float, cost: float, urgency: float) -> TenantTurn:
    """Returns the turn after one that is used `now`, for something that costs `cost`."""
    return TenantTurn(min(max(now, turn.at), now + LEAD) + cost, urgency)


def urgency_of(arrivals: Iterable[Arrival]) -> float:
    """Returns the least patience of `arrivals`."""
    return min((arrival.patience for arrival in arrivals), default=inf)

"""When it is whose turn: the rank of a request that waits, and what its tenant's turn does to it.

A request is *due* at arrival + PATIENCE[priority] + cost. Its rank is that, or later where its tenant has just had a
turn, so that a flood waits behind itself:

    rank = max(arrival + patience, its tenant's turn + what it has left of patience) + cost

A tenant's turn comes when the device could have made what it was given last (fair queueing: Demers, Keshav and Shenker,
1989). Three rules keep that from starving a request which more urgent ones of its own tenant go before:

- What waits beside more urgent requests of its tenant needs no more patience after a turn than they do: a turn is the
  tenant's, and goes to whoever of its requests is due.
- What has begun needs no patience for its other images.
- Once the first of a tenant's in its bucket is due, what the tenant gets in other buckets puts it off no more.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple

from deployments.engine.protocol.params import Priority
from deployments.engine.protocol.request import Bucket, Request

PATIENCE: Final[Mapping[Priority, float]] = {"high": 0.0, "normal": 30.0, "low": 120.0}
"""Seconds by which an image lets later ones of a higher priority go before it."""

LEAD: Final = 120.0
"""Seconds by which a tenant's turn is later than now at the most, however wrong costs are foreseen."""


class TenantTurn(NamedTuple):
    """A tenant's next turn, and the patience of the most urgent request that it had when it got the last one."""

    at: float
    patience: float


NO_TURN: Final = TenantTurn(-inf, inf)


@dataclass(slots=True)
class Arrival:
    """A request of which images wait. `at` is the queue's clock; `cost` what the device needs for it, in seconds;
    `turn` its tenant's, as far as that concerns this one. From `due` on none of its tenant's that came after it goes
    before it.
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

    def place(self, now: float) -> tuple[float, float]:
        """Where it stands among its tenant's: those that are due as they came, and then the others as they are due."""
        return (self.at if self.due <= now else self.due), self.due

    @property
    def image_cost(self) -> float:
        return self.cost / self.request.params.num_images

    def rank(self, urgency: float, turn: TenantTurn | None = None) -> float:
        """The lowest goes first. `urgency` is the least patience among its tenant's that wait."""
        turn = turn or self.turn
        begun = len(self.images) < self.request.params.num_images
        left = 0.0 if begun else min(self.patience, urgency, turn.patience)
        return max(self.at + self.patience, turn.at + left) + self.cost


class TenantTurns:
    """The turns of tenants who have been given something lately."""

    def __init__(self) -> None:
        self._turns: dict[str, TenantTurn] = {}

    def of(self, tenant: str) -> TenantTurn:
        """The tenant's next turn."""
        return self._turns.get(tenant, NO_TURN)

    def give(self, given: Arrival, now: float, waiting: Iterable[Arrival]) -> None:
        """An image of `given`, which is among those `waiting`, is handed out."""
        tenant = given.request.tenant
        tenants, mine = set[str](), list[Arrival]()
        for arrival in waiting:
            tenants.add(arrival.request.tenant)
            if arrival.request.tenant == tenant:
                mine.append(arrival)
        turn = after(self.of(tenant), now, given.image_cost, urgency_of(mine))
        heads: dict[Bucket, Arrival] = {}
        for arrival in mine:
            first = heads.setdefault(arrival.request.bucket, arrival)
            if arrival.place(now) < first.place(now):
                heads[arrival.request.bucket] = arrival
        for arrival in mine:
            bucket = arrival.request.bucket
            if bucket == given.request.bucket or arrival is not heads[bucket] or arrival.due > now:
                arrival.turn = turn
        self._turns[tenant] = turn
        # A turn that has come means nothing any more, unless older requests of the tenant still wait.
        self._turns = {name: turn for name, turn in self._turns.items() if turn.at > now or name in tenants}


def after(turn: TenantTurn, now: float, cost: float, urgency: float) -> TenantTurn:
    """The turn after one that is given `now`, for something that costs so much."""
    return TenantTurn(min(max(now, turn.at), now + LEAD) + cost, urgency)


def urgency_of(arrivals: Iterable[Arrival]) -> float:
    """The least patience among them."""
    return min((arrival.patience for arrival in arrivals), default=inf)

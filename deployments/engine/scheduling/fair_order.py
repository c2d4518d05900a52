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

from collections import Counter, deque
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
    """A request with images that wait. `at` is when it arrived (the queue's clock), `cost` the device's seconds for it.

    From `due` on, no later request of the tenant overtakes it.
    """

    request: Request
    at: float
    cost: float
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
    def unet_rows(self) -> int:
        """The rows of a UNet call that all its images together take."""
        return len(self.images) * self.request.unet_rows

    @property
    def image_cost(self) -> float:
        return self.cost / self.request.params.num_images

    def rank(self, urgency: float, turn: TenantTurn, images: int) -> float:
        """Returns the rank; the lowest goes first.

        `urgency` is the least patience among the tenant's waiting requests, `turn` the tenant's turn as far as it
        affects this request, of which so many `images` are left.
        """
        begun = images < self.request.params.num_images
        left = 0.0 if begun else min(self.patience, urgency, turn.patience)
        return max(self.at + self.patience, turn.at + left) + self.cost


class Tenants:
    """What is known of each tenant: its waiting requests, by patience, and its turn, if it has had an image lately."""

    def __init__(self) -> None:
        self._turns: dict[str, TenantTurn] = {}
        self._patience: dict[str, Counter[float]] = {}
        self._spared: dict[str, dict[Bucket, tuple[Arrival, TenantTurn]]] = {}

    def add(self, arrival: Arrival) -> None:
        """Counts a request that waits."""
        self._patience.setdefault(arrival.request.tenant, Counter())[arrival.patience] += 1

    def remove(self, arrival: Arrival) -> None:
        """Counts a request that waits no longer."""
        tenant = arrival.request.tenant
        left = self._patience[tenant]
        left[arrival.patience] -= 1
        if not left[arrival.patience]:
            del left[arrival.patience]
        if not left:
            del self._patience[tenant]
            self._spared.pop(tenant, None)

    def count(self, tenant: str) -> int:
        """Returns the number of the tenant's requests that wait. From any thread."""
        waiting = self._patience.get(tenant)
        return 0 if waiting is None else waiting.total()

    def patience_of(self, tenant: str) -> Counter[float]:
        """Returns how many requests of the tenant wait, by patience."""
        return self._patience[tenant].copy()

    def urgency_of(self, tenant: str) -> float:
        """Returns the least patience of the tenant's waiting requests."""
        return min(self._patience[tenant])

    def turn_of(self, arrival: Arrival) -> TenantTurn:
        """Returns the tenant's turn as far as it affects this request."""
        request = arrival.request
        spared, turn = self._spared.get(request.tenant, {}).get(request.bucket, (None, NO_TURN))
        return turn if spared is arrival else self._turns.get(request.tenant, NO_TURN)

    def charge(self, served: Arrival, now: float, heads: Iterable[Arrival]) -> None:
        """Moves the tenant's turn on for one image of `served`, which still counts as waiting.

        `heads` are the tenant's first requests, one of each bucket. Those that are due are spared, in other buckets.
        """
        tenant, bucket = served.request.tenant, served.request.bucket
        self._spared[tenant] = {
            head.request.bucket: (head, self.turn_of(head))
            for head in heads
            if head.request.bucket != bucket and head.due <= now
        }
        turn = self._turns.get(tenant, NO_TURN)
        self._turns[tenant] = next_turn(turn, now, served.image_cost, self.urgency_of(tenant))
        # A turn that has come means nothing any more, unless older requests of the tenant still wait.
        self._turns = {name: turn for name, turn in self._turns.items() if turn.at > now or name in self._patience}


def next_turn(turn: TenantTurn, now: float, cost: float, urgency: float) -> TenantTurn:
    """Returns the turn after one that is used `now`, for something that costs `cost`."""
    return TenantTurn(min(max(now, turn.at), now + LEAD) + cost, urgency)

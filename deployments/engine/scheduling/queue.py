"""The request queue, which decides what runs next. Knows requests and buckets. No torch.

Every waiting image has a rank, in seconds (`fair_order.py`), and the lowest goes first:

- *Ageing.* A request is due at arrival + PATIENCE[priority] + cost. From then on no later request of its tenant goes
  before it, whatever its priority; nor does what other tenants send from then on, apart from what they are owed. It is
  no longer preempted, and counts as `high` where buckets share the device. That bounds starvation.
- *Fairness.* A tenant that gets an image has its next turn only once the device could have made that image, so a flood
  of requests waits behind itself and not before others.
- *Short work first.* `cost` is the device's seconds for the whole request; a short one overtakes a long one that came
  less than their difference before it. That lowers the mean wait, as shortest-first does (Smith, 1956).

Buckets do not wait for each other: a request without room keeps its place and lets other buckets pass.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from time import perf_counter
from typing import Final

from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.params import Priority
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.row import Ticket
from deployments.engine.scheduling.fair_order import PATIENCE, Arrival, TenantTurns
from deployments.engine.scheduling.order_simulation import simulate_order

MAX_SHARE_OF_FREE_PLACES: Final = 3
"""A tenant may hold this many times the places that are left free (dynamic thresholds: Choudhury and Hahne, 1998): one
alone gets three quarters of the queue, and there is always a place for the next.
"""


Line = deque[tuple[int, Arrival]]
"""One tenant's requests in their order, with their places among all."""


class RequestQueue:
    """Holds at most `limit` requests. A request arrives, is prepared, and then its images are handed out one by one."""

    def __init__(self, limit: int, clock: Callable[[], float] = perf_counter) -> None:
        self._limit = limit
        self._clock = clock
        self._arrived: dict[str, Arrival] = {}
        self._waiting: dict[str, Arrival] = {}
        self._returned: list[Ticket] = []
        self._turns = TenantTurns()

    def __len__(self) -> int:
        """Counts requests of which at least one image waits for its first place."""
        return len(self._arrived) + len(self._waiting)

    @property
    def images(self) -> int:
        """The number of images that wait, of every priority."""
        return sum(self.waiting_by_priority().values())

    @property
    def unet_rows(self) -> int:
        """The rows of a UNet call that all prepared images together would take."""
        waiting = sum(len(arrival.images) * arrival.request.unet_rows for arrival in self._waiting.values())
        return waiting + sum(ticket.request.unet_rows for ticket in self._returned)

    @property
    def seconds(self) -> float:
        """The device's seconds for all images that wait for their first place. From any thread."""
        held = [*list(self._arrived.values()), *list(self._waiting.values())]
        return sum(arrival.image_cost * len(arrival.images) for arrival in held)

    def waiting_by_priority(self) -> dict[Priority, int]:
        """Counts waiting images, preempted ones included, by priority."""
        counts = dict.fromkeys(PATIENCE, 0)
        # Other threads call this too: each list is copied in one operation.
        for arrival in [*list(self._arrived.values()), *list(self._waiting.values())]:
            counts[arrival.request.params.priority] += len(arrival.images)
        for ticket in self._returned:
            counts[ticket.request.params.priority] += 1
        return counts

    def check_room(self, tenant: str = "") -> None:
        """Raises Overloaded if the queue is full, or has too many of this tenant's requests."""
        # Other threads call this too.
        held = [*list(self._arrived.values()), *list(self._waiting.values())]
        if len(held) >= self._limit:
            raise Overloaded(f"the queue is full: {self._limit} requests are waiting")
        own = sum(arrival.request.tenant == tenant for arrival in held)
        if own >= MAX_SHARE_OF_FREE_PLACES * (self._limit - len(held)):
            raise Overloaded(f"{own} of your requests are waiting already, and others need room, too")

    def enqueue(self, request: Request, cost: float = 0.0) -> None:
        """Adds a request; `cost` is the device's seconds for all of it. Raises Overloaded if there is no room."""
        self.check_room(request.tenant)
        images = deque(range(request.params.num_images))
        self._arrived[request.id] = Arrival(request, self._clock(), cost, self._turns.of(request.tenant), images)

    def pop_arrival(self) -> Arrival | None:
        """Takes out the next request to prepare. The caller adds it back once prepared, or drops it."""
        head = self._head(self._lines(self._arrived.values()))
        return None if head is None else self._arrived.pop(head[2].request.id)

    def add(self, arrival: Arrival) -> None:
        """Adds a request that has been prepared."""
        self._waiting[arrival.request.id] = arrival

    def take(self, room: Callable[[Request], int]) -> Iterator[Ticket]:
        """Yields the images that may start now, lowest rank first, while `room(request)` UNet rows are free for them.

        A bucket is passed over once its first image finds no room.
        """
        shut: set[Bucket] = set()
        lines = self._lines(self._waiting.values())
        while (first := self._first(lines, shut)) is not None:
            _, ticket = first
            if ticket.request.unet_rows > room(ticket.request):
                shut.add(ticket.request.bucket)
                continue
            self._hand_out(ticket)
            yield ticket

    def requeue(self, ticket: Ticket) -> None:
        """Puts a preempted image back. Its tenant has already been charged for it, so only its own due time counts."""
        self._returned.append(ticket)

    def priority_of(self, ticket: Ticket) -> Priority:
        """Returns the priority of a running image: `high` once it is due."""
        return "high" if ticket.due <= self._clock() else ticket.request.params.priority

    def choose_victims(
        self, bucket: Bucket, running: Collection[Ticket], room: Callable[[Request], int]
    ) -> list[Ticket]:
        """Returns the running images of `bucket` to preempt for the first one that waits there without room.

        Only low images are preempted, only for a high one, and none that is due, or would be before the high one's
        turn.
        """
        in_bucket = [arrival for arrival in self._waiting.values() if arrival.request.bucket == bucket]
        first = self._first(self._lines(in_bucket), self._buckets() - {bucket})
        if first is None or first[1].request.params.priority != "high":
            return []
        rank, head = first
        earliest_due = max(rank, self._clock())
        lower = [t for t in running if t.request.params.priority == "low" and t.due > earliest_due]
        chosen: list[Ticket] = []
        free = room(head.request)
        for ticket in sorted(lower, key=lambda ticket: ticket.due, reverse=True):
            if free >= head.request.unet_rows:
                break
            chosen.append(ticket)
            free += ticket.request.unet_rows
        return chosen if free >= head.request.unet_rows else []

    def remove(self, request_id: str) -> Request | None:
        """Drops what still waits of a request, and returns the request; None if nothing waits: it may have left
        already.
        """
        found = [ticket.request for ticket in self._returned if ticket.request.id == request_id]
        self._returned = [ticket for ticket in self._returned if ticket.request.id != request_id]
        for waiting in (self._arrived, self._waiting):
            if (arrival := waiting.pop(request_id, None)) is not None:
                found.append(arrival.request)
        return found[0] if found else None

    def predict_order(self) -> list[tuple[Request, int]]:
        """Returns the waiting requests in the order in which they are likely to start, each with its number of waiting
        images.
        """
        out = [(ticket.due, i, ticket.request, 1) for i, ticket in enumerate(self._returned)]
        out += [
            (rank, len(out) + i, a.request, len(a.images))
            for i, (rank, a) in enumerate(simulate_order(self._all(), self._clock()))
        ]
        return [(request, images) for _, _, request, images in sorted(out, key=lambda entry: entry[:2])]

    def _all(self) -> Iterable[Arrival]:
        return [*self._arrived.values(), *self._waiting.values()]

    def _buckets(self) -> set[Bucket]:
        returned = {ticket.request.bucket for ticket in self._returned}
        return returned | {arrival.request.bucket for arrival in self._waiting.values()}

    def _lines(self, arrivals: Iterable[Arrival]) -> list[Line]:
        """Returns each tenant's requests in their order, with their places among all."""
        now = self._clock()
        lines: dict[str, list[tuple[tuple[float, float], int, Arrival]]] = {}
        for number, arrival in enumerate(arrivals):
            lines.setdefault(arrival.request.tenant, []).append((arrival.order_key(now), number, arrival))
        return [deque((number, arrival) for _, number, arrival in sorted(line)) for line in lines.values()]

    def _head(self, lines: list[Line], shut: Collection[Bucket] = ()) -> tuple[float, int, Arrival] | None:
        """Returns the first of all lines: its rank, its place, and itself.

        Drops from the lines what cannot start now.
        """
        urgency: dict[str, float] = {}
        for arrival in self._all():
            tenant = arrival.request.tenant
            urgency[tenant] = min(urgency.get(tenant, arrival.patience), arrival.patience)
        heads = []
        for line in lines:
            while line and (not line[0][1].images or line[0][1].request.bucket in shut):
                line.popleft()
            if line:
                number, arrival = line[0]
                heads.append((arrival.rank(urgency[arrival.request.tenant]), number, arrival))
        return min(heads, default=None)

    def _first(self, lines: list[Line], shut: Collection[Bucket]) -> tuple[float, Ticket] | None:
        """Returns the image of the lowest rank in a bucket that is not `shut`; the first to come if ranks are equal."""
        found = [(ticket.due, ticket) for ticket in self._returned if ticket.request.bucket not in shut]
        if (head := self._head(lines, shut)) is not None:
            rank, _, arrival = head
            found.append((rank, Ticket(arrival.request, arrival.images[0], arrival.due)))
        return min(found, key=lambda entry: entry[0], default=None)

    def _hand_out(self, ticket: Ticket) -> None:
        if any(ticket is returned for returned in self._returned):
            self._returned = [returned for returned in self._returned if returned is not ticket]
            return
        arrival = self._waiting[ticket.request.id]
        arrival.images.popleft()
        self._turns.charge(arrival, self._clock(), self._all())
        if not arrival.images:
            del self._waiting[ticket.request.id]

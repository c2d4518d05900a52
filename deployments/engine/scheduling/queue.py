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

What the engine does in every step takes a time that grows with the tenants and buckets that wait, and not with the
number of requests.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from time import perf_counter
from typing import Final

from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.params import Priority
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.row import Ticket
from deployments.engine.scheduling.fair_order import PATIENCE, Arrival, Tenants
from deployments.engine.scheduling.order_simulation import FORESEEN, QueueSnapshot, WaitingRequest
from deployments.engine.scheduling.waiting_lines import Place, WaitingLines

MAX_SHARE_OF_FREE_PLACES: Final = 3
"""A tenant may hold this many times the places that are left free (dynamic thresholds: Choudhury and Hahne, 1998): one
alone gets three quarters of the queue, and there is always a place for the next.
"""


class RequestQueue:
    """Holds at most `limit` requests. A request arrives, is prepared, and then its images are handed out one by one."""

    def __init__(self, limit: int, clock: Callable[[], float] = perf_counter) -> None:
        self._limit = limit
        self._clock = clock
        self._arrived = WaitingLines()
        self._in_preparation = WaitingLines()
        self._waiting = WaitingLines()
        self._held = (self._arrived, self._in_preparation, self._waiting)
        self._returned: list[Ticket] = []
        self._tenants = Tenants()
        self._nanoseconds = 0

    def __len__(self) -> int:
        """Counts requests of which at least one image waits for its first place."""
        return sum(len(lines) for lines in self._held)

    @property
    def images(self) -> int:
        """The number of images that wait, of every priority."""
        return sum(self.waiting_by_priority().values())

    @property
    def unet_rows(self) -> int:
        """The rows of a UNet call that all prepared images together would take."""
        waiting = sum(arrival.unet_rows for arrival in self._waiting.arrivals())
        return waiting + sum(ticket.request.unet_rows for ticket in self._returned)

    @property
    def seconds(self) -> float:
        """The device's seconds for all images that wait for their first place. From any thread."""
        return self._nanoseconds / 1e9

    def waiting_by_priority(self) -> dict[Priority, int]:
        """Counts waiting images, preempted ones included, by priority."""
        counts = dict.fromkeys(PATIENCE, 0)
        for arrival in self._all():
            counts[arrival.request.params.priority] += len(arrival.images)
        for ticket in self._returned:
            counts[ticket.request.params.priority] += 1
        return counts

    def check_room(self, tenant: str = "") -> None:
        """Raises Overloaded if the queue is full, or has too many of this tenant's requests."""
        held, own = len(self), self._tenants.count(tenant)
        if held >= self._limit:
            raise Overloaded(f"the queue is full: {self._limit} requests are waiting")
        if own >= MAX_SHARE_OF_FREE_PLACES * (self._limit - held):
            raise Overloaded(f"{own} of your requests are waiting already, and others need room, too")

    def enqueue(self, request: Request, cost: float = 0.0) -> Arrival:
        """Adds a request; `cost` is the device's seconds for all of it. Raises Overloaded if there is no room."""
        self.check_room(request.tenant)
        images = deque(range(request.params.num_images))
        arrival = Arrival(request, self._clock(), cost, images)
        self._arrived.add(arrival)
        self._tenants.add(arrival)
        self._nanoseconds += len(images) * _image_nanoseconds(arrival)
        return arrival

    def pop_arrival(self) -> Arrival | None:
        """Returns the next request to prepare. The caller adds it once it is prepared, or removes it."""
        head = self._head(self._arrived, self._clock(), lambda _: True)
        if head is None:
            return None
        _, arrival = head
        self._arrived.pop(arrival.request.id)
        self._in_preparation.add(arrival)
        return arrival

    def add(self, arrival: Arrival) -> bool:
        """Lets the images of a request that has been prepared begin. Returns False if it was removed meanwhile."""
        if self._in_preparation.pop(arrival.request.id) is None:
            return False
        self._waiting.add(arrival)
        return True

    def take(self, room: Callable[[Request], int]) -> Iterator[Ticket]:
        """Yields the images that may start now, lowest rank first, while `room(request)` UNet rows are free for them.

        A bucket is passed over once its first image finds no room.
        """
        shut: set[Bucket] = set()
        now = self._clock()
        while (first := self._first(now, lambda bucket: bucket not in shut)) is not None:
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
        first = self._first(self._clock(), lambda other: other == bucket)
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
        for lines in self._held:
            if (arrival := lines.pop(request_id)) is not None:
                self._tenants.remove(arrival)
                self._nanoseconds -= len(arrival.images) * _image_nanoseconds(arrival)
                found.append(arrival.request)
        return found[0] if found else None

    def prepared(self) -> list[Request]:
        """Returns the requests that have been prepared and of which images wait for their first places. From any
        thread.
        """
        return [arrival.request for arrival in self._waiting.arrivals()]

    def holds(self, arrival: Arrival) -> bool:
        """Returns True if images of this arrival wait for their first places."""
        return any(lines.get(arrival.request.id) is arrival for lines in self._held)

    def snapshot(self) -> QueueSnapshot:
        """Returns what the order of the first `FORESEEN` requests follows from, as it is now."""
        now, tenants = self._clock(), self._tenants
        nearest = [
            WaitingRequest(arrival, len(arrival.images), tenants.turn_of(arrival))
            for lines in self._held
            for arrival in lines.first_few(now, FORESEEN)
        ]
        names = {waiting.arrival.request.tenant for waiting in nearest}
        patience = {name: tenants.patience_of(name) for name in names}
        return QueueSnapshot(now, nearest, tuple(self._returned), patience, len(self), self.seconds)

    def _all(self) -> list[Arrival]:
        return [arrival for lines in self._held for arrival in lines.arrivals()]

    def _head(self, lines: WaitingLines, now: float, is_open: Callable[[Bucket], bool]) -> tuple[float, Arrival] | None:
        """Returns the request of the lowest rank in a bucket that is open, and its rank."""
        heads = []
        for tenant in lines.tenants:
            if (place := lines.first(tenant, now, is_open)) is not None:
                _, _, number, arrival = place
                rank = arrival.rank(
                    self._tenants.urgency_of(tenant), self._tenants.turn_of(arrival), len(arrival.images)
                )
                heads.append((rank, number, arrival))
        rank, _, first = min(heads, default=(0.0, 0, None))
        return None if first is None else (rank, first)

    def _first(self, now: float, is_open: Callable[[Bucket], bool]) -> tuple[float, Ticket] | None:
        """Returns the image of the lowest rank in a bucket that is open; the first to come if ranks are equal."""
        found = [(ticket.due, ticket) for ticket in self._returned if is_open(ticket.request.bucket)]
        if (head := self._head(self._waiting, now, is_open)) is not None:
            rank, arrival = head
            found.append((rank, Ticket(arrival.request, arrival.images[0], arrival.due)))
        return min(found, key=lambda entry: entry[0], default=None)

    def _hand_out(self, ticket: Ticket) -> None:
        if any(ticket is returned for returned in self._returned):
            self._returned = [returned for returned in self._returned if returned is not ticket]
            return
        arrival = self._waiting.get(ticket.request.id)
        assert arrival is not None
        arrival.images.popleft()
        self._nanoseconds -= _image_nanoseconds(arrival)
        now = self._clock()
        self._tenants.charge(arrival, now, self._first_of_buckets(arrival.request.tenant, now))
        if not arrival.images:
            self._waiting.pop(ticket.request.id)
            self._tenants.remove(arrival)

    def _first_of_buckets(self, tenant: str, now: float) -> list[Arrival]:
        """Returns the tenant's first request of each bucket, prepared or not."""
        first: dict[Bucket, Place] = {}
        for place in chain.from_iterable(lines.first_of_buckets(tenant, now) for lines in self._held):
            bucket = place[3].request.bucket
            if bucket not in first or place[:2] < first[bucket][:2]:
                first[bucket] = place
        return [arrival for _, _, _, arrival in first.values()]


def _image_nanoseconds(arrival: Arrival) -> int:
    """Returns what an image costs, as a number of which sums are exact."""
    return round(arrival.image_cost * 1e9)

"""Who runs next. Knows requests and buckets, and nothing of torch.

Every waiting image has a rank, in seconds, and the lowest goes first:

    rank = max(arrival, its tenant's turn) + PATIENCE[priority] + cost

- *Ageing.* A rank does not grow, and newcomers' ranks do. What arrives more than `PATIENCE["low"]` after an image, plus
  the difference of their costs, cannot go before it, whatever its priority: that is the bound on starvation.
- *Fairness.* A tenant whose image is handed out has its next turn only when the device could have made that image, so
  a flood waits behind itself and not before others (fair queueing: Demers, Keshav and Shenker, 1989). Within a tenant
  images go by arrival + patience + cost, so ageing holds there, too.
- *Short work first.* `cost` is the device's seconds for the whole request; a short one passes a long one that came
  less than their difference before it. That lowers the mean wait as shortest-first does (Smith, 1956).

Buckets do not wait for each other: what has no room keeps its place and lets other buckets pass.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from time import perf_counter
from typing import Final

from deployments.engine.errors import Overloaded
from deployments.engine.params import Priority
from deployments.engine.row import Bucket, Request, Ticket

PATIENCE: Final[Mapping[Priority, float]] = {"high": 0.0, "normal": 30.0, "low": 120.0}
"""Seconds by which an image lets later ones of a higher priority go before it."""

GREED: Final = 3
"""A tenant may hold so many times the places that are left free (dynamic thresholds: Choudhury and Hahne, 1998): one
alone gets three quarters of the queue, and there is a place for the next one always."""


@dataclass(slots=True)
class Arrival:
    """A request of which images wait. `at` is the queue's clock; `cost` what the device needs for it, in seconds."""

    request: Request
    at: float
    cost: float
    images: deque[int] = field(default_factory=deque)

    @property
    def age(self) -> float:
        """Its place among its tenant's own."""
        return self.at + PATIENCE[self.request.params.priority] + self.cost

    @property
    def image_cost(self) -> float:
        return self.cost / self.request.params.num_images


class Queue:
    """Holds at most `limit` requests. One arrives, is prepared, and then its images are handed out one by one."""

    def __init__(self, limit: int, clock: Callable[[], float] = perf_counter) -> None:
        self._limit = limit
        self._clock = clock
        self._arrived: dict[str, Arrival] = {}
        self._waiting: dict[str, Arrival] = {}
        self._returned: list[Ticket] = []
        self._turns: dict[str, float] = {}

    def __len__(self) -> int:
        """Requests of which at least one image waits for its first place."""
        return len(self._arrived) + len(self._waiting)

    @property
    def images(self) -> int:
        """Images that wait, of every priority."""
        return sum(self.waiting_by_priority().values())

    @property
    def unet_rows(self) -> int:
        """Rows of a UNet call that all prepared images together would take."""
        waiting = sum(len(arrival.images) * arrival.request.unet_rows for arrival in self._waiting.values())
        return waiting + sum(ticket.request.unet_rows for ticket in self._returned)

    @property
    def seconds(self) -> float:
        """The device's seconds for all images that wait for their first place. From any thread."""
        held = [*list(self._arrived.values()), *list(self._waiting.values())]
        return sum(arrival.image_cost * len(arrival.images) for arrival in held)

    def waiting_by_priority(self) -> dict[Priority, int]:
        """Images that wait, those included that had to make way, by priority."""
        counts = dict.fromkeys(PATIENCE, 0)
        # Asked from other threads, too: each list is made in one go.
        for arrival in [*list(self._arrived.values()), *list(self._waiting.values())]:
            counts[arrival.request.params.priority] += len(arrival.images)
        for ticket in self._returned:
            counts[ticket.request.params.priority] += 1
        return counts

    def check_room(self, tenant: str = "") -> None:
        """Raises Overloaded when the queue is full, or full enough of this tenant's requests."""
        # Asked from other threads, too.
        held = [*list(self._arrived.values()), *list(self._waiting.values())]
        if len(held) >= self._limit:
            raise Overloaded(f"the queue is full: {self._limit} requests are waiting")
        mine = sum(arrival.request.tenant == tenant for arrival in held)
        if mine >= GREED * (self._limit - len(held)):
            raise Overloaded(f"{mine} of your requests are waiting already, and others need room, too")

    def arrive(self, request: Request, cost: float = 0.0) -> None:
        """Lets a request in; `cost` is the device's seconds for all of it. Raises Overloaded when there is no room."""
        self.check_room(request.tenant)
        images = deque(range(request.params.num_images))
        self._arrived[request.id] = Arrival(request, self._clock(), cost, images)

    def next_arrival(self) -> Arrival | None:
        """Takes out the first that is to be prepared; it is to be added then, or is gone."""
        if not self._arrived:
            return None
        first = min(self._arrived.values(), key=self._rank)
        return self._arrived.pop(first.request.id)

    def add(self, arrival: Arrival) -> None:
        """Takes in a request that has been prepared."""
        self._waiting[arrival.request.id] = arrival

    def take(self, room: Callable[[Request], int]) -> Iterator[Ticket]:
        """Hands out what may start now, lowest rank first, while `room(request)` UNet rows are free for it.

        A bucket whose first image finds none is passed over.
        """
        shut: set[Bucket] = set()
        while (ticket := self._first(shut)) is not None:
            if ticket.request.unet_rows > room(ticket.request):
                shut.add(ticket.request.bucket)
                continue
            self._hand_out(ticket)
            yield ticket

    def give_back(self, ticket: Ticket) -> None:
        """An image that had a place waits again, at its old rank."""
        self._returned.append(ticket)

    def victims(self, bucket: Bucket, running: Collection[Ticket], room: Callable[[Request], int]) -> list[Ticket]:
        """The running images of `bucket` that make way for the one that waits first there, where it finds no room.

        Only low ones make way, only for a high one, and none whose rank is lower: who has waited long enough, stays.
        """
        head = self._first(self._buckets() - {bucket})
        if head is None or head.request.params.priority != "high":
            return []
        lower = [t for t in running if t.request.params.priority == "low" and t.rank > head.rank]
        chosen: list[Ticket] = []
        free = room(head.request)
        for ticket in sorted(lower, key=lambda ticket: ticket.rank, reverse=True):
            if free >= head.request.unet_rows:
                break
            chosen.append(ticket)
            free += ticket.request.unet_rows
        return chosen if free >= head.request.unet_rows else []

    def remove(self, request_id: str) -> Request | None:
        """Forgets what still waits of a request, and returns it; None if nothing does: it may have left already."""
        found = [ticket.request for ticket in self._returned if ticket.request.id == request_id]
        self._returned = [ticket for ticket in self._returned if ticket.request.id != request_id]
        for waiting in (self._arrived, self._waiting):
            if (arrival := waiting.pop(request_id, None)) is not None:
                found.append(arrival.request)
        return found[0] if found else None

    def order(self) -> list[tuple[Request, int]]:
        """The requests that wait, in the order in which they are likely to begin, with the images that wait of each."""
        out = [(ticket.rank, i, ticket.request, 1) for i, ticket in enumerate(self._returned)]
        out += [(rank, len(out) + i, a.request, len(a.images)) for i, (rank, a) in enumerate(self._simulated())]
        return [(request, images) for _, _, request, images in sorted(out, key=lambda entry: entry[:2])]

    def _simulated(self) -> Iterator[tuple[float, Arrival]]:
        """Whose turn comes when, if nothing else arrives. Ranks never fall, since every turn is later than the last."""
        lines: dict[str, deque[tuple[int, Arrival]]] = {}
        for place, arrival in sorted(enumerate(self._all()), key=lambda entry: entry[1].age):
            lines.setdefault(arrival.request.tenant, deque()).append((place, arrival))
        turns = dict(self._turns)
        now, last = self._clock(), 0.0
        heap = [(self._rank(line[0][1]), line[0][0], tenant) for tenant, line in lines.items()]
        heapify(heap)
        while heap:
            rank, _, tenant = heappop(heap)
            _, arrival = lines[tenant].popleft()
            last = max(last, rank)
            yield last, arrival
            turns[tenant] = max(now, turns.get(tenant, 0.0)) + arrival.cost
            now += arrival.cost
            if lines[tenant]:
                place, following = lines[tenant][0]
                heappush(heap, (self._rank(following, turns), place, tenant))

    def _all(self) -> Iterable[Arrival]:
        return [*self._arrived.values(), *self._waiting.values()]

    def _buckets(self) -> set[Bucket]:
        returned = {ticket.request.bucket for ticket in self._returned}
        return returned | {arrival.request.bucket for arrival in self._waiting.values()}

    def _rank(self, arrival: Arrival, turns: Mapping[str, float] | None = None) -> float:
        turn = (self._turns if turns is None else turns).get(arrival.request.tenant, arrival.at)
        return max(arrival.at, turn) + PATIENCE[arrival.request.params.priority] + arrival.cost

    def _first(self, shut: Collection[Bucket]) -> Ticket | None:
        """The image of the lowest rank in a bucket that is not `shut`; first come where ranks are equal."""
        heads: dict[str, tuple[int, Arrival]] = {}
        for place, arrival in enumerate(self._waiting.values()):
            tenant = arrival.request.tenant
            if arrival.request.bucket not in shut and (tenant not in heads or arrival.age < heads[tenant][1].age):
                heads[tenant] = place, arrival
        tickets = [ticket for ticket in self._returned if ticket.request.bucket not in shut]
        in_order = sorted(heads.values(), key=lambda entry: entry[0])
        tickets += [Ticket(head.request, head.images[0], self._rank(head)) for _, head in in_order]
        return min(tickets, key=lambda ticket: ticket.rank, default=None)

    def _hand_out(self, ticket: Ticket) -> None:
        if any(ticket is returned for returned in self._returned):
            self._returned = [returned for returned in self._returned if returned is not ticket]
            return
        arrival = self._waiting[ticket.request.id]
        arrival.images.popleft()
        if not arrival.images:
            del self._waiting[ticket.request.id]
        now, tenant = self._clock(), ticket.request.tenant
        self._turns[tenant] = max(now, self._turns.get(tenant, 0.0)) + arrival.image_cost
        # A turn that has come means nothing any more, unless older requests of the tenant still wait.
        waiting = {each.request.tenant for each in self._all()}
        self._turns = {name: turn for name, turn in self._turns.items() if turn > now or name in waiting}

"""Who runs next. Knows requests and buckets, and nothing of torch."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

from deployments.engine.errors import Overloaded
from deployments.engine.row import Bucket, Request


@dataclass(frozen=True, slots=True)
class Ticket:
    """Image `index` of `request` waits for a place."""

    request: Request
    index: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that has been let in and not looked into. `at` is in `time.perf_counter` seconds."""

    request: Request
    at: float = field(default_factory=perf_counter)


class Queue:
    """First come, first served within a bucket; buckets never wait for each other. Holds at most `limit` requests.

    A request arrives, and joins its bucket's lane when it has been prepared.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._arrived: dict[str, Arrival] = {}
        self._lanes: dict[Bucket, deque[Ticket]] = {}
        self._waiting: dict[str, int] = {}

    def __len__(self) -> int:
        """Requests of which at least one image waits."""
        return len(self._arrived) + len(self._waiting)

    @property
    def images(self) -> int:
        """Images that wait."""
        # Asked from other threads, too: the list is made in one go, and the rest works on that.
        arrived = sum(arrival.request.params.num_images for arrival in list(self._arrived.values()))
        return arrived + sum(self._waiting.values())

    @property
    def unet_rows(self) -> int:
        """Rows of a UNet call that all prepared images together would take."""
        return sum(ticket.request.unet_rows for lane in self._lanes.values() for ticket in lane)

    def check_room(self) -> None:
        """Raises Overloaded when the queue is full."""
        if len(self) >= self._limit:
            raise Overloaded(f"the queue is full: {self._limit} requests are waiting")

    def arrive(self, request: Request) -> None:
        """Lets a request in. Raises Overloaded when the queue is full."""
        self.check_room()
        self._arrived[request.id] = Arrival(request)

    def next_arrival(self) -> Arrival | None:
        """Takes out the oldest arrival; once prepared it is to be added."""
        return self._arrived.pop(next(iter(self._arrived))) if self._arrived else None

    def add(self, request: Request) -> int:
        """Puts a prepared request into its lane and returns how many of those are before it."""
        position = len(self._waiting)
        count = request.params.num_images
        self._lanes.setdefault(request.bucket, deque()).extend(Ticket(request, i) for i in range(count))
        self._waiting[request.id] = count
        return position

    def take(self, room: Callable[[Bucket], int]) -> Iterator[Ticket]:
        """Hands out what may start now: per bucket, in order, while `room(bucket)` UNet rows are free."""
        for bucket, lane in list(self._lanes.items()):
            while lane and lane[0].request.unet_rows <= room(bucket):
                yield self._pop(lane)
            if not lane:
                self._lanes.pop(bucket, None)

    def remove(self, request_id: str) -> bool:
        """Forgets what still waits of a request; False if nothing does, since a request may have left already."""
        if self._arrived.pop(request_id, None) is not None:
            return True
        if self._waiting.pop(request_id, None) is None:
            return False
        for bucket, lane in list(self._lanes.items()):
            kept = deque(ticket for ticket in lane if ticket.request.id != request_id)
            if kept:
                self._lanes[bucket] = kept
            else:
                del self._lanes[bucket]
        return True

    def positions(self) -> Iterator[tuple[str, int]]:
        """Prepared requests that wait, oldest first, with the number of requests before each."""
        return ((request_id, position) for position, request_id in enumerate(self._waiting))

    def _pop(self, lane: deque[Ticket]) -> Ticket:
        ticket = lane.popleft()
        left = self._waiting[ticket.request.id] - 1
        if left:
            self._waiting[ticket.request.id] = left
        else:
            del self._waiting[ticket.request.id]
        return ticket

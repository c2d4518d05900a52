"""Who runs next. Knows requests and buckets, and nothing of torch."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deployments.engine.errors import Overloaded
from deployments.engine.row import Bucket, Request


@dataclass(frozen=True, slots=True)
class Ticket:
    """Image `index` of `request` waits for a place."""

    request: Request
    index: int


class Queue:
    """First come, first served within a bucket; buckets never wait for each other. Holds at most `limit` requests."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lanes: dict[Bucket, deque[Ticket]] = {}
        self._waiting: dict[str, int] = {}

    def __len__(self) -> int:
        """Requests of which at least one image waits."""
        return len(self._waiting)

    @property
    def images(self) -> int:
        """Images that wait."""
        return sum(self._waiting.values())

    def add(self, request: Request) -> int:
        """Takes a request in and returns how many requests are before it. Raises Overloaded when the queue is full."""
        if len(self._waiting) >= self._limit:
            raise Overloaded(f"the queue is full: {self._limit} requests are waiting")
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

    def remove(self, request_id: str) -> None:
        """Forgets what still waits of a request; unknown ids are no error, since a request may have left already."""
        if self._waiting.pop(request_id, None) is None:
            return
        for bucket, lane in list(self._lanes.items()):
            kept = deque(ticket for ticket in lane if ticket.request.id != request_id)
            if kept:
                self._lanes[bucket] = kept
            else:
                del self._lanes[bucket]

    def positions(self) -> Iterator[tuple[str, int]]:
        """Waiting requests, oldest first, with the number of requests before each."""
        return ((request_id, position) for position, request_id in enumerate(self._waiting))

    def _pop(self, lane: deque[Ticket]) -> Ticket:
        ticket = lane.popleft()
        left = self._waiting[ticket.request.id] - 1
        if left:
            self._waiting[ticket.request.id] = left
        else:
            del self._waiting[ticket.request.id]
        return ticket

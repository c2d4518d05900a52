"""Keeps waiting requests in their order, so that the first is found in a time that does not grow with their number.

A request's key in the order changes once, when it becomes due (`Arrival.order_key`). So each line has two heaps: one of
those that are not due, by when they will be, and one of those that are, by when they came.
"""

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count, islice
from typing import Final

from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.fair_order import Arrival

Place = tuple[float, float, int, Arrival]
"""A request's place: its key in the order, its number among all that were added, and itself."""

_SPARE: Final = 16
"""Removed entries that a line may keep in addition to as many as are left."""


class WaitingLines:
    """Requests that wait for the same thing, by id, and in their order by tenant and bucket."""

    def __init__(self) -> None:
        self._requests: dict[str, tuple[int, Arrival]] = {}
        self._lines: dict[str, dict[Bucket, _Line]] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._requests)

    def arrivals(self) -> list[Arrival]:
        """Returns all of them, as they were added. From any thread."""
        # The values are copied in one operation.
        return [arrival for _, arrival in list(self._requests.values())]

    def get(self, request_id: str) -> Arrival | None:
        """Returns the request of that id, if it is here."""
        _, arrival = self._requests.get(request_id, (0, None))
        return arrival

    def add(self, arrival: Arrival) -> None:
        """Adds a request behind those of the same key."""
        number, request = next(self._numbers), arrival.request
        self._requests[request.id] = (number, arrival)
        self._lines.setdefault(request.tenant, {}).setdefault(request.bucket, _Line()).add(number, arrival)

    def pop(self, request_id: str) -> Arrival | None:
        """Takes out the request of that id, if it is here."""
        number, arrival = self._requests.pop(request_id, (0, None))
        if arrival is not None:
            request = arrival.request
            lines = self._lines[request.tenant]
            lines[request.bucket].remove(number)
            if not lines[request.bucket]:
                del lines[request.bucket]
            if not lines:
                del self._lines[request.tenant]
        return arrival

    @property
    def tenants(self) -> list[str]:
        """The tenants that have requests here."""
        return list(self._lines)

    def first_of_buckets(self, tenant: str, now: float) -> Iterator[Place]:
        """Yields the first request of each of the tenant's buckets."""
        return (line.first(now) for line in self._lines.get(tenant, {}).values())

    def first(self, tenant: str, now: float, is_open: Callable[[Bucket], bool]) -> Place | None:
        """Returns the tenant's first request in any bucket that is open."""
        lines = (line for bucket, line in self._lines.get(tenant, {}).items() if is_open(bucket))
        return min((line.first(now) for line in lines), default=None)

    def first_few(self, now: float, most: int) -> list[Arrival]:
        """Returns, as they were added, the first of each tenant's requests in each bucket: at most `most` that are due,
        and as many others.
        """
        lines = [line for buckets in self._lines.values() for line in buckets.values()]
        places = [place for line in lines for place in line.first_few(now, most)]
        return [arrival for _, _, _, arrival in sorted(places, key=lambda place: place[2])]


class _Line:
    """One tenant's requests of one bucket. Removed ones stay in the heaps until they come to the front."""

    __slots__ = ("_due", "_numbers", "_undue")

    def __init__(self) -> None:
        self._undue: list[Place] = []
        self._due: list[Place] = []
        self._numbers: set[int] = set()

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int, arrival: Arrival) -> None:
        self._numbers.add(number)
        heappush(self._undue, (arrival.due, arrival.due, number, arrival))

    def remove(self, number: int) -> None:
        self._numbers.remove(number)
        if len(self._due) + len(self._undue) > 2 * len(self._numbers) + _SPARE:
            for heap in (self._due, self._undue):
                heap[:] = filter(self._is_here, heap)
                heapify(heap)

    def first(self, now: float) -> Place:
        """Returns the first request. The line must not be empty."""
        while self._undue and (self._undue[0][0] <= now or not self._is_here(self._undue[0])):
            place = heappop(self._undue)
            if self._is_here(place):
                _, due, number, arrival = place
                heappush(self._due, (arrival.at, due, number, arrival))
        while self._due and not self._is_here(self._due[0]):
            heappop(self._due)
        return self._due[0] if self._due else self._undue[0]

    def first_few(self, now: float, most: int) -> Iterator[Place]:
        """Yields, in their order, at most `most` requests that are due, and as many others."""
        self.first(now)
        for heap in (self._due, self._undue):
            yield from islice(filter(self._is_here, _in_order(heap)), most)

    def _is_here(self, place: Place) -> bool:
        return place[2] in self._numbers


def _in_order(heap: list[Place]) -> Iterator[Place]:
    """Yields what is in a heap in its order, and takes nothing out. The first k take k log k steps."""
    front = [(heap[0], 0)] if heap else []
    while front:
        place, index = heappop(front)
        yield place
        for child in (2 * index + 1, 2 * index + 2):
            if child < len(heap):
                heappush(front, (heap[child], child))

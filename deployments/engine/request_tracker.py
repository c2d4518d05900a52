"""What is known, counted and told of requests that have been let in and are not finished."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator

from deployments.engine.protocol.counters import Counters, total
from deployments.engine.protocol.errors import EngineError
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, ImageDone, ImageFailed, Progress
from deployments.engine.protocol.latencies import PhaseRecorder
from deployments.engine.protocol.request import Request
from deployments.engine.row import Row
from deployments.engine.scheduling.forecast import Estimate
from deployments.engine.steps.request_state import RequestState


class RequestTracker:
    """`emit` receives every event. `knows` says whether a model of that name is here: names come from outside."""

    def __init__(self, emit: Callable[[Event], None], knows: Callable[[str], bool]) -> None:
        self.emit = emit
        self.ongoing: dict[str, RequestState] = {}
        self.tallies: dict[str, Counters] = {}
        self.phases: dict[str, PhaseRecorder] = defaultdict(PhaseRecorder)
        self._knows = knows
        self._deadlines: dict[str, tuple[Request, float]] = {}

    @property
    def total(self) -> Counters:
        """What has been done for all models together."""
        return total(list(self.tallies.values()))

    def tally(self, request: Request) -> Counters:
        """What has been done for the request's model."""
        return self.tallies.setdefault(self._account(request), Counters())

    def start_anew(self) -> None:
        """Forgets what has been counted and taken down."""
        self.tallies.clear()
        self.phases.clear()

    def arrived(self, request: Request) -> None:
        """A request waits to be prepared; its deadline counts from now."""
        if request.params.deadline_ms is not None:
            self._deadlines[request.id] = (request, time.perf_counter() + request.params.deadline_ms / 1000)

    def accepted(self, ongoing: RequestState, position: int, estimate: Estimate) -> None:
        """A request has been prepared, and waits for its rows' places with `position` requests before it."""
        request = ongoing.request
        self.ongoing[request.id] = ongoing
        self.tally(request).requests += 1
        steps = len(ongoing.schedule)
        self.emit(Accepted(request.id, position, steps, round(estimate.start, 3), round(estimate.finish, 3)))

    def refuse(self, request: Request, error: EngineError) -> None:
        """Nothing comes of a request."""
        self.close(request.id)
        self.turned_away(request)
        self.emit(Failed(request.id, error))

    def turned_away(self, request: Request) -> None:
        """A request was refused."""
        self.tally(request).refused += 1

    def close(self, request_id: str) -> Request | None:
        """Forgets a request, and returns it if it was accepted."""
        self._deadlines.pop(request_id, None)
        ongoing = self.ongoing.pop(request_id, None)
        return None if ongoing is None else ongoing.request

    def overdue(self) -> Iterator[Request]:
        """The requests whose deadlines have passed."""
        if self._deadlines:
            now = time.perf_counter()
            yield from [request for request, deadline in self._deadlines.values() if deadline < now]

    def moved(self, request_id: str, position: int, estimate: Estimate) -> None:
        """A request still waits; told when its position is news."""
        ongoing = self.ongoing.get(request_id)
        if ongoing is not None and ongoing.admitted is None and ongoing.moved_to(position):
            self.emit(Progress(request_id, 0, len(ongoing.schedule), position + 1, round(estimate.finish, 3)))

    def stepped(self, rows: list[Row], seconds_left: Callable[[str], float | None]) -> None:
        """Rows have had a step; a request is as far as its slowest one."""
        slowest: dict[str, Row] = {}
        for row in rows:
            slowest[row.request.id] = min(slowest.get(row.request.id, row), row, key=lambda r: r.step)
        for request_id, row in slowest.items():
            self.emit(Progress(request_id, row.step, len(row.schedule), 0, seconds_left(request_id)))

    def settle(self, request: Request, index: int, result: bytes | EngineError, decode_ms: float = 0.0) -> None:
        """One image is done or failed; with the last one the request is finished."""
        ongoing = self.ongoing[request.id]
        if isinstance(result, EngineError):
            self.tally(request).failures += 1
            self.emit(ImageFailed(request.id, index, result))
        else:
            self.tally(request).images += 1
            self.emit(_image_done(request, index, result))
        if ongoing.settled(decode_ms):
            self.close(request.id)
            timings = ongoing.timings()
            self.phases[self._account(request)].finished(timings)
            self.emit(Finished(request.id, timings))

    def _account(self, request: Request) -> str:
        return request.model if self._knows(request.model) else ""


def _image_done(request: Request, index: int, data: bytes) -> ImageDone:
    bucket = request.bucket
    return ImageDone(
        request.id,
        index,
        request.seed_of(index),
        request.params.output_format,
        bucket.width,
        bucket.height,
        data,
    )

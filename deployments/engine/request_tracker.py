"""Tracks unfinished requests: their state and deadlines, the events they emit, and counters by model."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from heapq import heappop, heappush
from uuid import uuid4

from deployments.engine.lora.rows.lora_set import LoraSet
from deployments.engine.protocol.counters import Counters, sum_counters
from deployments.engine.protocol.errors import DeadlineExceeded, EngineError
from deployments.engine.protocol.events import (
    Accepted,
    Continuation,
    Event,
    Failed,
    Finished,
    ImageDone,
    ImageFailed,
    Progress,
)
from deployments.engine.protocol.latencies import PhaseRecorder
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.safety import Finding
from deployments.engine.row import Row
from deployments.engine.scheduling.forecast import Estimate
from deployments.engine.steps.request_state import RequestState


class RequestTracker:
    """Holds the state of every unfinished request, and emits its events.

    `emit` receives every event. `is_known` says whether the engine has a model of that name: callers choose the names,
    so requests for unknown models are counted under one name. `id` is these counters' own.
    """

    def __init__(self, emit: Callable[[Event], None], is_known: Callable[[str], bool]) -> None:
        self.id = uuid4().hex
        self._listener: Callable[[Event], object] = emit
        self.requests: dict[str, RequestState] = {}
        self.counters: dict[str, Counters] = {}
        self.phases: dict[str, PhaseRecorder] = defaultdict(PhaseRecorder)
        self._is_known = is_known
        self._uncounted: Counters | None = None
        self._deadlines: dict[str, Request] = {}
        self._next_deadlines: list[tuple[float, str]] = []

    @property
    def total(self) -> Counters:
        """The counters of all models, added up."""
        return sum_counters(list(self.counters.values()))

    def emit(self, event: Event) -> None:
        """Sends an event to the listener."""
        self._listener(event)

    @contextmanager
    def redirect_events(self, listener: Callable[[Event], object]) -> Iterator[None]:
        """Sends events to `listener` alone while the context is open."""
        before, self._listener = self._listener, listener
        try:
            yield
        finally:
            self._listener = before

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Keeps what happens while the context is open out of the counters."""
        self._uncounted = Counters()
        try:
            yield
        finally:
            self._uncounted = None

    def counters_of(self, request: Request) -> Counters:
        """Returns the counters of the request's model."""
        if self._uncounted is not None:
            return self._uncounted
        return self.counters.setdefault(self._counters_key(request), Counters())

    def reset(self) -> None:
        """Clears all counters and durations."""
        self.counters.clear()
        self.phases.clear()

    def loras_in_use(self) -> list[LoraSet]:
        """Returns the LoRAs of all tracked requests. From any thread."""
        # The dictionary is copied in one operation.
        return [state.loras for state in list(self.requests.values()) if state.loras is not None]

    def prepared_bytes(self) -> int:
        """Returns the bytes that are held for requests none of whose images has begun. From any thread."""
        # The dictionary is copied in one operation.
        return sum(state.bytes for state in list(self.requests.values()) if state.admitted is None)

    def record_arrival(self, request: Request) -> None:
        """Starts a request's deadline. It still waits to be prepared."""
        if request.params.deadline_ms is not None:
            self._deadlines[request.id] = request
            heappush(self._next_deadlines, (time.perf_counter() + request.params.deadline_ms / 1000, request.id))

    def accept(self, request_state: RequestState, position: int, estimate: Estimate) -> None:
        """Starts to track a prepared request, which has `position` requests before it in the queue."""
        request = request_state.request
        self.requests[request.id] = request_state
        self.counters_of(request).requests += 1
        start, finish = round(estimate.start, 3), round(estimate.finish, 3)
        self.emit(Accepted(request.id, position, request_state.steps, start, finish))

    def refuse(self, request: Request, error: EngineError) -> None:
        """Ends a request with a `Failed` event before any image is made."""
        self.forget(request.id)
        self.count_refusal(request)
        self.emit(Failed(request.id, error))

    def count_refusal(self, request: Request) -> None:
        """Counts a refused request."""
        self.counters_of(request).refused += 1

    def forget(self, request_id: str) -> Request | None:
        """Stops tracking a request, and returns it if it was accepted."""
        self._deadlines.pop(request_id, None)
        request_state = self.requests.pop(request_id, None)
        return None if request_state is None else request_state.request

    def is_gone(self, request_id: str) -> bool:
        """Returns True if nothing more is wanted for a request that was accepted. From any thread."""
        return request_id not in self.requests

    def expire(self, request: Request) -> None:
        """Ends a request whose deadline has passed."""
        self.counters_of(request).expired += 1
        self.emit(Failed(request.id, DeadlineExceeded("the deadline passed before it was finished")))

    def find_overdue(self) -> Iterator[Request]:
        """Yields the requests whose deadlines have passed."""
        while self._next_deadlines and self._next_deadlines[0][0] < time.perf_counter():
            _, request_id = heappop(self._next_deadlines)
            if (request := self._deadlines.get(request_id)) is not None:
                yield request

    def report_position(self, request_id: str, position: int, estimate: Estimate) -> None:
        """Emits a waiting request's position in the queue when it has changed."""
        request_state = self.requests.get(request_id)
        if request_state is not None and request_state.admitted is None and request_state.update_position(position):
            self.emit(Progress(request_id, 0, request_state.steps, position + 1, round(estimate.finish, 3)))

    def report_progress(
        self, progress: Mapping[str, tuple[int, int]], seconds_left: Callable[[str], float | None]
    ) -> None:
        """Emits the progress of requests, as `progress_of` returned it when their latest step was issued."""
        for request_id, (step, steps) in progress.items():
            request_state = self.requests.get(request_id)
            # Its images may be in different passes, of which each step knows only one's.
            if request_state is not None and step > request_state.progress:
                request_state.progress = step
                self.emit(Progress(request_id, step, steps, 0, seconds_left(request_id)))

    def record_denoised(self, request_id: str) -> None:
        """Records that a row of the request has had its last step."""
        if (request_state := self.requests.get(request_id)) is not None:
            request_state.record_denoised()

    def finish_image(
        self,
        request: Request,
        index: int,
        result: bytes | EngineError,
        decode_ms: float = 0.0,
        safety: Finding | None = None,
    ) -> None:
        """Emits one image, or its failure; after the last one the request is finished."""
        request_state, counters = self.requests[request.id], self.counters_of(request)
        if isinstance(result, EngineError):
            counters.record_failure(result)
            self.emit(ImageFailed(request.id, index, result))
        else:
            neighbour = request_state.continued.get(index)
            continued = None if neighbour is None else Continuation(neighbour.saved.step, neighbour.distance)
            counters.record_image(safety, 0 if continued is None else continued.steps)
            self.emit(_image_done(request, index, result, safety, continued))
        if request_state.finish_image(decode_ms):
            self.forget(request.id)
            timings = request_state.timings()
            self.phases[self._counters_key(request)].record(timings)
            self.emit(Finished(request.id, timings))

    def _counters_key(self, request: Request) -> str:
        return request.model if self._is_known(request.model) else ""


def progress_of(rows: Iterable[Row]) -> dict[str, tuple[int, int]]:
    """Returns, by request, the steps that its slowest row has had, and those of its schedule."""
    slowest: dict[str, Row] = {}
    for row in rows:
        slowest[row.request.id] = min(slowest.get(row.request.id, row), row, key=lambda r: r.progress)
    return {request_id: row.progress for request_id, row in slowest.items()}


def _image_done(
    request: Request, index: int, data: bytes, safety: Finding | None, continued: Continuation | None
) -> ImageDone:
    width, height = request.picture_size
    return ImageDone(
        request.id,
        index,
        request.seed_of(index),
        request.params.output_format,
        width,
        height,
        data,
        safety,
        continued,
    )

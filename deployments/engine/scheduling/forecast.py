"""Forecasts when requests start and finish, by simulating the queue. Knows rows and costs. No torch.

The rows are simulated as a fluid: each bucket gets its share of the device, its rows advance at one pace, and when one
is done the next that waits takes its place. An event is a row's end, so the work grows with the number of rows.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.scheduling.cost_model import CostModel

_DONE: Final = 1e-6
"""Steps that rounding leaves over."""


NOTHING_USUAL: Final[Mapping[Bucket, float]] = MappingProxyType({})


@dataclass(slots=True)
class PlannedWork:
    """`images` of a request: `steps` evaluations each, of `unet_rows` rows, with `controls` ControlNets on them, and
    LoRAs if they are `changed`.
    """

    request_id: str
    bucket: Bucket
    steps: float
    unet_rows: int
    controls: int = 0
    images: int = 1
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds from now to a request's first step, and to its last image's file."""

    start: float
    finish: float

    def after(self, seconds: float) -> "Estimate":
        """Returns the seconds that are left so much later; what was to start meanwhile starts now."""
        start = max(0.0, self.start - seconds)
        return Estimate(start, start + self.finish - self.start)


@dataclass(frozen=True, slots=True)
class Forecast:
    """When requests start and finish, as it was foreseen `at` a moment, in the clock's seconds.

    `order` are the waiting requests that are foreseen, in the order of starting. `length` are all that wait, and
    `beyond` the device's seconds for those that are not foreseen.
    """

    at: float
    order: Sequence[Request]
    estimates: Mapping[str, Estimate]
    length: int
    beyond: float

    def place_of(self, request: Request, cost: float) -> tuple[int, Estimate]:
        """Returns how many requests are likely to start before `request`, and when it is likely to start and finish.

        One that is too far back to be foreseen is taken to come last; `cost` is the device's seconds for it.
        """
        position = next((place for place, other in enumerate(self.order) if other.id == request.id), None)
        if position is not None:
            return position, self.estimates[request.id]
        finish = max((estimate.finish for estimate in self.estimates.values()), default=0.0) + self.beyond
        return self.length - 1, Estimate(max(0.0, finish - cost), finish)


@dataclass(slots=True)
class _SimulatedBucket:
    """One bucket's rows, and those that wait for it."""

    bucket: Bucket
    room: int
    usual: float
    rows: list[PlannedWork] = field(default_factory=list)
    waiting: deque[PlannedWork] = field(default_factory=deque)

    def admit(self) -> Iterable[PlannedWork]:
        used = sum(work.unet_rows for work in self.rows)
        while self.waiting and used + self.waiting[0].unet_rows <= max(self.room, self.waiting[0].unet_rows):
            work = self.waiting.popleft()
            used += work.unet_rows
            self.rows.append(work)
            yield work

    def steps_per_second(self, costs: CostModel) -> float:
        """Returns the steps per second with the device to itself."""
        used = max(sum(work.unet_rows for work in self.rows), round(self.usual))
        controlled = sum(work.unet_rows * work.controls for work in self.rows)
        changed = sum(work.unet_rows for work in self.rows if work.changed)
        return 1 / costs.call_seconds(self.bucket, used, controlled, changed)


def forecast(
    running: Sequence[PlannedWork],
    waiting: Sequence[PlannedWork],
    room: Callable[[Bucket], int],
    costs: CostModel,
    usual: Mapping[Bucket, float] = NOTHING_USUAL,
    loop_factor: float = 1.0,
) -> dict[str, Estimate]:
    """Returns estimates by request. `waiting` is in the order of starting; at most `room(bucket)` UNet rows run at
    once.

    `usual` are the recent UNet rows per call: if requests keep coming at that rate, calls stay as large. `loop_factor`
    is how many times longer the engine's iterations are than the calls in them.
    """
    simulated: dict[Bucket, _SimulatedBucket] = {}
    for bucket in {work.bucket: None for work in (*running, *waiting)}:
        simulated[bucket] = _SimulatedBucket(bucket, room(bucket), usual.get(bucket, 0.0))
    for work in running:
        simulated[work.bucket].rows.extend(_split_images(work))
    for work in waiting:
        simulated[work.bucket].waiting.extend(_split_images(work))
    starts = {work.request_id: 0.0 for work in running}
    ends: dict[str, float] = {}
    now = decoded = 0.0
    while busy := [each for each in simulated.values() if each.rows or each.waiting]:
        for each in busy:
            for work in each.admit():
                starts.setdefault(work.request_id, now)
        now += _advance_to_next_end(busy, costs) * loop_factor
        for each in busy:
            for work in each.rows:
                if work.steps <= 0:
                    # Images are decoded one after the other, beside the steps of the rest.
                    decoded = max(decoded, now) + costs.decode_seconds(each.bucket)
                    ends[work.request_id] = decoded
            each.rows = [work for work in each.rows if work.steps > 0]
    return {request_id: Estimate(starts[request_id], end) for request_id, end in ends.items()}


def _split_images(work: PlannedWork) -> Iterable[PlannedWork]:
    return (replace(work, steps=max(work.steps, _DONE), images=1) for _ in range(work.images))


def _advance_to_next_end(busy: Sequence[_SimulatedBucket], costs: CostModel) -> float:
    """Advances all rows until at least one is done, and returns the seconds that this takes."""
    # Each bucket is given device time by its rows (`BucketShare`).
    rows = sum(len(each.rows) for each in busy)
    paces = [each.steps_per_second(costs) * len(each.rows) / rows for each in busy]
    seconds = min(min(work.steps for work in each.rows) / pace for each, pace in zip(busy, paces, strict=True))
    for each, pace in zip(busy, paces, strict=True):
        for work in each.rows:
            left = work.steps - pace * seconds
            work.steps = left if left > _DONE else 0.0
    return seconds

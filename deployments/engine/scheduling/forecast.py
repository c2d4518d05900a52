"""When requests will begin and be finished, if things go on as they do. Knows rows and costs, and nothing of torch.

The tray is played forward as a fluid: each bucket gets its share of the device, its rows move on at one pace, and when
one is done the next that waits takes its place. An event is a row's end, so the work grows with the number of rows.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.cost_model import CostModel

_DONE: Final = 1e-6
"""Steps that rounding leaves over."""


NOTHING_USUAL: Final[Mapping[Bucket, float]] = MappingProxyType({})


@dataclass(slots=True)
class PlannedWork:
    """`images` of a request: `steps` evaluations each, of `unet_rows` rows, with `controls` ControlNets on them."""

    request_id: str
    bucket: Bucket
    steps: float
    unet_rows: int
    controls: int = 0
    images: int = 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds from now to a request's first step and to its last image's file."""

    start: float
    finish: float


@dataclass(slots=True)
class _Tray:
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

    def pace(self, costs: CostModel) -> float:
        """Steps per second with the device to itself."""
        used = max(sum(work.unet_rows for work in self.rows), round(self.usual))
        return 1 / costs.call_seconds(self.bucket, used, sum(work.unet_rows * work.controls for work in self.rows))


def forecast(
    running: Sequence[PlannedWork],
    waiting: Sequence[PlannedWork],
    room: Callable[[Bucket], int],
    costs: CostModel,
    usual: Mapping[Bucket, float] = NOTHING_USUAL,
    turn: float = 1.0,
) -> dict[str, Estimate]:
    """Estimates by request. `waiting` is in the order of beginning; at most `room(bucket)` UNet rows run at once.

    `usual` are the UNet rows per call of late: where as many more requests come as did, calls stay as large. `turn` is
    how much longer the engine's turns are than the calls in them.
    """
    trays: dict[Bucket, _Tray] = {}
    for bucket in {work.bucket: None for work in (*running, *waiting)}:
        trays[bucket] = _Tray(bucket, room(bucket), usual.get(bucket, 0.0))
    for work in running:
        trays[work.bucket].rows.extend(_single(work))
    for work in waiting:
        trays[work.bucket].waiting.extend(_single(work))
    starts = {work.request_id: 0.0 for work in running}
    ends: dict[str, float] = {}
    now = decoded = 0.0
    while busy := [tray for tray in trays.values() if tray.rows or tray.waiting]:
        for tray in busy:
            for work in tray.admit():
                starts.setdefault(work.request_id, now)
        now += _until_next_end(busy, costs) * turn
        for tray in busy:
            for work in tray.rows:
                if work.steps <= 0:
                    # One picture is decoded after the other, beside the steps of the rest.
                    decoded = max(decoded, now) + costs.decode_seconds(tray.bucket)
                    ends[work.request_id] = decoded
            tray.rows = [work for work in tray.rows if work.steps > 0]
    return {request_id: Estimate(starts[request_id], end) for request_id, end in ends.items()}


def _single(work: PlannedWork) -> Iterable[PlannedWork]:
    return (
        PlannedWork(work.request_id, work.bucket, max(work.steps, _DONE), work.unet_rows, work.controls)
        for _ in range(work.images)
    )


def _until_next_end(busy: Sequence[_Tray], costs: CostModel) -> float:
    """Moves all rows on until at least one is done; the seconds that it took."""
    # Each bucket is given device time by its rows (`BucketShare`).
    rows = sum(len(tray.rows) for tray in busy)
    paces = [tray.pace(costs) * len(tray.rows) / rows for tray in busy]
    seconds = min(min(work.steps for work in tray.rows) / pace for tray, pace in zip(busy, paces, strict=True))
    for tray, pace in zip(busy, paces, strict=True):
        for work in tray.rows:
            left = work.steps - pace * seconds
            work.steps = left if left > _DONE else 0.0
    return seconds

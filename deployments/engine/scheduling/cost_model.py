"""Models what steps cost, in seconds, from measurements by bucket and padded rows. No torch.

Medians of the latest measurements, so that one step beside a busy neighbour does not count. What has not been measured
is scaled from what has: by rows and by pixels, since the networks are bound by arithmetic.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Final

from deployments.engine.calibration.figures import MOST_SECONDS, CallFigure, CostFigures, KneeFigure, ShapeFigure
from deployments.engine.padding import padded_size
from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.bounded_measurements import evict_oldest
from deployments.engine.synchronized import Synchronized, synchronized

KEPT_MEASUREMENTS: Final = MOST_SECONDS
"""The latest measurements of each kind that are kept."""

MIN_GAIN: Final = 1.05
"""A larger size pays if its throughput is this many times that of every smaller one; more rows cost everybody latency.
"""

_UNKNOWN: Final = 0.05
"""Seconds per UNet row where nothing has been measured at all: only in an engine that was never warmed up."""

Measured = dict[tuple[Bucket, int], deque[float]]


class CostModel(Synchronized):
    """Measured and estimated seconds of calls. One thread records them, others read.

    `sizes` are the padded batch sizes that UNet calls have, ascending.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self._sizes = tuple(sizes)
        self._calls: Measured = {}
        self._controls: dict[Bucket, deque[float]] = {}
        self._changes: dict[Bucket, deque[float]] = {}
        self._decodes: dict[Bucket, deque[float]] = {}
        self._knees: dict[Bucket, int] = {}

    @synchronized
    def record_call(
        self, bucket: Bucket, padded: int, control_rows: int, seconds: float, changed_rows: int = 0
    ) -> None:
        """Records a UNet call of `padded` rows, with ControlNets on `control_rows` of them, and LoRAs on
        `changed_rows`. One with both teaches nothing: it does not tell which of them took how much.
        """
        if not control_rows and not changed_rows:
            evict_oldest(self._calls, (bucket, padded))
            self._calls.setdefault((bucket, padded), deque(maxlen=KEPT_MEASUREMENTS)).append(seconds)
        elif (bare := self._calls.get((bucket, padded))) is not None and not (control_rows and changed_rows):
            per_row = max(0.0, seconds - median(bare)) / (control_rows or changed_rows)
            added = self._controls if control_rows else self._changes
            evict_oldest(added, bucket)
            added.setdefault(bucket, deque(maxlen=KEPT_MEASUREMENTS)).append(per_row)

    @synchronized
    def record_decode(self, bucket: Bucket, seconds: float) -> None:
        """Records the seconds that one image took from latents to file."""
        evict_oldest(self._decodes, bucket)
        self._decodes.setdefault(bucket, deque(maxlen=KEPT_MEASUREMENTS)).append(seconds)

    @synchronized
    def call_seconds(self, bucket: Bucket, rows: int, control_rows: int = 0, changed_rows: int = 0) -> float:
        """Returns the seconds of a UNet call for `rows`, with ControlNets on `control_rows` of them, and LoRAs on
        `changed_rows`.
        """
        padded = padded_size(min(rows, self._sizes[-1]), self._sizes)
        added = control_rows * self.control_seconds(bucket) + changed_rows * self.changed_seconds(bucket)
        return self._bare(bucket, padded) + added

    @synchronized
    def row_seconds(self, bucket: Bucket) -> float:
        """Returns one row's share of a call at the knee."""
        full = self.knee(bucket)
        return self.call_seconds(bucket, full) / full

    @synchronized
    def control_seconds(self, bucket: Bucket) -> float:
        """Returns a ControlNet's seconds per row: measured, or a third of a UNet's (its share of the arithmetic in
        SD1.5).
        """
        measured = self._controls.get(bucket)
        return median(measured) if measured else self._bare(bucket, self._sizes[0]) / self._sizes[0] / 3

    @synchronized
    def changed_seconds(self, bucket: Bucket) -> float:
        """Returns the seconds that LoRAs add to a row of a UNet call; 0 before a row had any.

        At other sizes than measured ones they are taken to be in proportion to the pixels.
        """
        near = _nearest(bucket, [known for known in self._changes if known.model == bucket.model])
        return median(self._changes[near]) * bucket.area_ratio(near) if near else 0.0

    @synchronized
    def decode_seconds(self, bucket: Bucket) -> float:
        """Returns the seconds of one image from latents to file; 0 before any was made."""
        if bucket in self._decodes:
            return median(self._decodes[bucket])
        near = _nearest(bucket, list(self._decodes))
        return median(self._decodes[near]) * bucket.area_ratio(near) if near else 0.0

    @synchronized
    def find_knee(self, bucket: Bucket) -> int:
        """Sets the knee of `bucket`, and of its model's other shapes, from what has been measured."""
        measured = [size for where, size in self._calls if where == bucket]
        self._knees[bucket] = max(
            (size for size in measured if self.is_worthwhile(bucket, size)), default=self._sizes[-1]
        )
        return self._knees[bucket]

    @synchronized
    def has_knee(self, bucket: Bucket) -> bool:
        """Returns True if the knee of `bucket` itself has been found."""
        return bucket in self._knees

    @synchronized
    def times_measured(self, bucket: Bucket, size: int) -> int:
        """Returns how many calls of `size` padded rows are remembered."""
        return len(self._calls.get((bucket, size), ()))

    @synchronized
    def is_worthwhile(self, bucket: Bucket, size: int) -> bool:
        """Returns True if calls of `size` have enough more throughput than every smaller size."""
        smaller = [known for where, known in self._calls if where == bucket and known < size]
        return all(self.throughput(bucket, size) > MIN_GAIN * self.throughput(bucket, known) for known in smaller)

    @synchronized
    def throughput(self, bucket: Bucket, size: int) -> float:
        """Returns UNet rows per second of calls of `size`, at best: a busy neighbour can only lower it."""
        return size / min(self._calls[bucket, size])

    @synchronized
    def knee(self, bucket: Bucket) -> int:
        """Returns the UNet rows beyond which more of them only add latency; the largest size where nothing was
        measured.

        At other sizes than the measured one the knee is taken to lie at as many pixels.
        """
        if bucket in self._knees:
            return self._knees[bucket]
        near = _nearest(bucket, [known for known in self._knees if known.model == bucket.model])
        if near is None or self._knees[near] == self._sizes[-1]:
            return self._sizes[-1]
        wanted = self._knees[near] / bucket.area_ratio(near)
        return max((size for size in self._sizes if size <= wanted), default=self._sizes[0])

    @synchronized
    def measured_calls(self) -> dict[Bucket, dict[int, float]]:
        """Returns the measured seconds per call, by bucket and size."""
        out: dict[Bucket, dict[int, float]] = {}
        for (bucket, size), seconds in sorted(self._calls.items(), key=lambda entry: entry[0][1]):
            out.setdefault(bucket, {})[size] = median(seconds)
        return out

    @synchronized
    def export(self, model: str) -> CostFigures:
        """Returns what is known of one model, to be kept for the next start."""
        return CostFigures(
            knees=tuple(
                KneeFigure(width=where.width, height=where.height, rows=rows)
                for where, rows in self._knees.items()
                if where.model == model
            ),
            calls=tuple(
                CallFigure(width=where.width, height=where.height, rows=size, seconds=tuple(seconds))
                for (where, size), seconds in self._calls.items()
                if where.model == model
            ),
            controls=_export_shapes(self._controls, model),
            changes=_export_shapes(self._changes, model),
            decodes=_export_shapes(self._decodes, model),
        )

    @synchronized
    def restore(self, model: str, figures: CostFigures) -> None:
        """Takes over what `export` returned for an equal model at an earlier start; sizes that are not padded to now
        are left out.
        """
        for knee in figures.knees:
            if knee.rows in self._sizes:
                self._knees[Bucket(model, knee.height, knee.width)] = knee.rows
        for call in figures.calls:
            if call.rows in self._sizes:
                self._calls[Bucket(model, call.height, call.width), call.rows] = _measurements(call.seconds)
        pairs = (
            (self._controls, figures.controls),
            (self._changes, figures.changes),
            (self._decodes, figures.decodes),
        )
        for kept, shapes in pairs:
            for shape in shapes:
                kept[Bucket(model, shape.height, shape.width)] = _measurements(shape.seconds)

    def _bare(self, bucket: Bucket, padded: int) -> float:
        if (exact := self._calls.get((bucket, padded))) is not None:
            return median(exact)
        near = _nearest(bucket, [where for where, _ in self._calls])
        if near is None:
            return _UNKNOWN * padded
        size = min((size for where, size in self._calls if where == near), key=lambda size: abs(size - padded))
        return median(self._calls[near, size]) * padded / size * bucket.area_ratio(near)


def _measurements(seconds: Iterable[float]) -> deque[float]:
    return deque(seconds, maxlen=KEPT_MEASUREMENTS)


def _export_shapes(measured: Mapping[Bucket, Iterable[float]], model: str) -> tuple[ShapeFigure, ...]:
    return tuple(
        ShapeFigure(width=where.width, height=where.height, seconds=tuple(seconds))
        for where, seconds in measured.items()
        if where.model == model
    )


def _nearest(bucket: Bucket, known: Sequence[Bucket]) -> Bucket | None:
    """Returns the known bucket most like this one: of the same model if possible, then the nearest in size."""
    return min(
        known,
        key=lambda other: (other != bucket, other.model != bucket.model, abs(bucket.area_ratio(other) - 1)),
        default=None,
    )

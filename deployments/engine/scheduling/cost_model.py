"""What steps cost, in seconds, as measured here: by bucket and padded rows. Knows nothing of torch.

Medians of the latest measurements, so that one step beside a busy neighbour does not count. What has not been measured
is scaled from what has: by rows and by pixels, since the networks are bound by arithmetic.
"""

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Final

from deployments.engine.locked import Locked, locked
from deployments.engine.padding import padded_size
from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.size_limits import make_room

KEPT: Final = 15
"""Latest measurements of each kind."""

WORTH: Final = 1.05
"""Rows beyond the knee bring less than this in throughput per size, and cost everybody latency."""

_UNKNOWN: Final = 0.05
"""Seconds per UNet row where nothing has been measured at all; only an engine that was never warmed up asks."""

Measured = dict[tuple[Bucket, int], deque[float]]


class CostModel(Locked):
    """`sizes` are the padded batch sizes that UNet calls have, ascending. One thread tells it, others ask."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self._sizes = tuple(sizes)
        self._calls: Measured = {}
        self._controls: dict[Bucket, deque[float]] = {}
        self._decodes: dict[Bucket, deque[float]] = {}
        self._knees: dict[Bucket, int] = {}

    @locked
    def denoised(self, bucket: Bucket, padded: int, control_rows: int, seconds: float) -> None:
        """A UNet call of `padded` rows took so long, with ControlNets on `control_rows` of them."""
        if not control_rows:
            make_room(self._calls, (bucket, padded))
            self._calls.setdefault((bucket, padded), deque(maxlen=KEPT)).append(seconds)
        elif (bare := self._calls.get((bucket, padded))) is not None:
            per_row = max(0.0, seconds - median(bare)) / control_rows
            make_room(self._controls, bucket)
            self._controls.setdefault(bucket, deque(maxlen=KEPT)).append(per_row)

    @locked
    def decoded(self, bucket: Bucket, seconds: float) -> None:
        """A picture took so long from latents to file."""
        make_room(self._decodes, bucket)
        self._decodes.setdefault(bucket, deque(maxlen=KEPT)).append(seconds)

    @locked
    def call_seconds(self, bucket: Bucket, rows: int, control_rows: int = 0) -> float:
        """A UNet call for `rows`, with ControlNets on `control_rows`."""
        padded = padded_size(min(rows, self._sizes[-1]), self._sizes)
        return self._bare(bucket, padded) + control_rows * self.control_seconds(bucket)

    @locked
    def row_seconds(self, bucket: Bucket) -> float:
        """One row's share of a call that is as full as it pays."""
        full = self.knee(bucket)
        return self.call_seconds(bucket, full) / full

    @locked
    def control_seconds(self, bucket: Bucket) -> float:
        """A ControlNet's seconds per row: measured, or a third of a UNet's (its share of the arithmetic for SD1.5)."""
        measured = self._controls.get(bucket)
        return median(measured) if measured else self._bare(bucket, self._sizes[0]) / self._sizes[0] / 3

    @locked
    def decode_seconds(self, bucket: Bucket) -> float:
        """One picture from latents to file; 0 where none has been made."""
        if bucket in self._decodes:
            return median(self._decodes[bucket])
        near = _nearest(bucket, list(self._decodes))
        return median(self._decodes[near]) * _larger(bucket, near) if near else 0.0

    @locked
    def find_knee(self, bucket: Bucket) -> int:
        """Sets the knee of `bucket`, and of its model's other shapes, from what has been measured."""
        measured = [size for where, size in self._calls if where == bucket]
        self._knees[bucket] = max((size for size in measured if self.pays(bucket, size)), default=self._sizes[-1])
        return self._knees[bucket]

    @locked
    def pays(self, bucket: Bucket, size: int) -> bool:
        """Whether calls of `size` brought enough more than every smaller one."""
        smaller = [known for where, known in self._calls if where == bucket and known < size]
        return all(self.throughput(bucket, size) > WORTH * self.throughput(bucket, known) for known in smaller)

    @locked
    def throughput(self, bucket: Bucket, size: int) -> float:
        """UNet rows per second of calls of `size`, at best: a busy neighbour only ever takes away."""
        return size / min(self._calls[bucket, size])

    @locked
    def knee(self, bucket: Bucket) -> int:
        """The UNet rows beyond which more of them only add latency; the largest size where nothing was measured.

        Elsewhere than where it was measured it is taken to lie at as many pixels.
        """
        if bucket in self._knees:
            return self._knees[bucket]
        near = _nearest(bucket, [known for known in self._knees if known.model == bucket.model])
        if near is None or self._knees[near] == self._sizes[-1]:
            return self._sizes[-1]
        wanted = self._knees[near] / _larger(bucket, near)
        return max((size for size in self._sizes if size <= wanted), default=self._sizes[0])

    @locked
    def curve(self) -> dict[Bucket, dict[int, float]]:
        """The measured seconds per call, by bucket and size."""
        out: dict[Bucket, dict[int, float]] = {}
        for (bucket, size), seconds in sorted(self._calls.items(), key=lambda entry: entry[0][1]):
            out.setdefault(bucket, {})[size] = median(seconds)
        return out

    def _bare(self, bucket: Bucket, padded: int) -> float:
        if (exact := self._calls.get((bucket, padded))) is not None:
            return median(exact)
        near = _nearest(bucket, [where for where, _ in self._calls])
        if near is None:
            return _UNKNOWN * padded
        size = min((size for where, size in self._calls if where == near), key=lambda size: abs(size - padded))
        return median(self._calls[near, size]) * padded / size * _larger(bucket, near)


def _larger(bucket: Bucket, other: Bucket) -> float:
    return bucket.height * bucket.width / (other.height * other.width)


def _nearest(bucket: Bucket, known: Sequence[Bucket]) -> Bucket | None:
    """Of what is known the bucket most like this one: the same model's first, then the nearest in size."""
    return min(
        known,
        key=lambda other: (other != bucket, other.model != bucket.model, abs(_larger(bucket, other) - 1)),
        default=None,
    )

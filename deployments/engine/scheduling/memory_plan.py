"""How many rows fit: bytes per call, fitted to what calls really took. Knows buckets and bytes, and nothing of torch.

A call of n rows takes `fixed + n * per_row` bytes on top of what is held all the time (weights, prompts, latents). Both
are fitted, by bucket and kind of call, to measured peaks; shapes that have not been measured yet are scaled by pixels,
and corrected when they have run. When the device runs out all the same, that size is left alone for a while.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final, Literal

from deployments.engine.locked import Locked, locked
from deployments.engine.padding import padded_size
from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.size_limits import make_room

Kind = Literal["denoise", "control", "decode"]
"""A UNet call, by its rows; what ControlNets add to it, by their rows; a VAE call, by its pictures."""

RESERVE: Final = 0.1
"""Share of the budget that is never planned with: allocators split their blocks, and others use the device, too."""

AFTER_RUNNING_OUT: Final = 300.0
"""Seconds for which a size that ran out of memory is not tried again."""

GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes of a call: `fixed + rows * per_row`."""

    fixed: float
    per_row: float

    def bytes(self, rows: int) -> int:
        return round(self.fixed + rows * self.per_row)


class MemoryPlan(Locked):
    """`budget` is all the bytes there are, or None where nobody counts them; `sizes` what UNet calls are padded to.

    The engine's thread and the decoder's tell it what they took, while others ask: for statistics, for autoscaling.
    """

    def __init__(self, budget: int | None, sizes: Sequence[int], clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self.budget = budget
        self._sizes = tuple(sizes)
        self._clock = clock
        self._peaks: dict[tuple[Kind, Bucket], dict[int, int]] = {}
        self._too_much: dict[tuple[Bucket, int], float] = {}

    @property
    def limit(self) -> float:
        """The bytes that may be planned with."""
        return float("inf") if self.budget is None else self.budget * (1 - RESERVE)

    @locked
    def knows(self, kind: Kind, bucket: Bucket, rows: int) -> bool:
        """Whether such a call has been measured."""
        return rows in self._peaks.get((kind, bucket), {})

    @locked
    def took(self, kind: Kind, bucket: Bucket, rows: int, peak: int) -> None:
        """A call of `rows` had `peak` bytes at once, on top of what was held before."""
        make_room(self._peaks, (kind, bucket))
        self._peaks.setdefault((kind, bucket), {})[rows] = peak

    @locked
    def ran_out(self, bucket: Bucket, rows: int) -> None:
        """A UNet call of `rows` found no memory."""
        self._too_much[bucket, rows] = self._clock() + AFTER_RUNNING_OUT

    @locked
    def predicted(self, kind: Kind, bucket: Bucket, rows: int) -> int:
        """The bytes of a call; 0 where nothing like it has been measured."""
        peaks = self._peaks.get((kind, bucket), {})
        if rows in peaks:
            return peaks[rows]
        if peaks:
            return _fitted(peaks).bytes(rows)
        known = [where for what, where in self._peaks if what == kind]
        if not known or not rows:
            return 0
        near = min(known, key=lambda other: (other.model != bucket.model, abs(_larger(bucket, other) - 1)))
        return round(_fitted(self._peaks[kind, near]).bytes(rows) * _larger(bucket, near))

    @locked
    def call(self, bucket: Bucket, rows: int, control_rows: int = 0, pictures: int = 1) -> int:
        """The bytes of a padded UNet call with its ControlNets, beside the decoding of `pictures`."""
        padded = padded_size(min(rows, self._sizes[-1]), self._sizes)
        denoise = self.predicted("denoise", bucket, padded) + self.predicted("control", bucket, control_rows)
        return denoise + self.predicted("decode", bucket, pictures)

    @locked
    def rows(self, bucket: Bucket, held: int, control_rows: int = 0, pictures: int = 1) -> int:
        """The UNet rows of `bucket` that may run at once beside `held` bytes; 0 where not one fits."""
        if self.budget is not None and not any(where.model == bucket.model for _, where in self._peaks):
            return min(self._sizes[-1], 2 * first_guess(self.budget))
        fitting = [
            size
            for size in self._sizes
            if held + self.call(bucket, size, control_rows, pictures) <= self.limit and not self._ran_out(bucket, size)
        ]
        return max(fitting, default=0)

    @locked
    def figures(self) -> dict[tuple[Kind, Bucket, int], tuple[int, int]]:
        """Reality and plan: for every measured call its bytes, and what the fit says."""
        return {
            (kind, bucket, rows): (peak, _fitted(peaks).bytes(rows))
            for (kind, bucket), peaks in list(self._peaks.items())
            for rows, peak in sorted(peaks.items())
        }

    def _ran_out(self, bucket: Bucket, size: int) -> bool:
        """Whether a call so large, or smaller, found no memory lately."""
        now = self._clock()
        self._too_much = {call: until for call, until in self._too_much.items() if until > now}
        return any(where == bucket and failed <= size for where, failed in self._too_much)


def first_guess(budget: int) -> int:
    """Images that run at once before anything has been measured: 4 with 24 GB, 2 with 16 GB, else one."""
    if budget >= 23 * GIB:
        return 4
    return 2 if budget >= 15 * GIB else 1


def _fitted(peaks: dict[int, int]) -> Fit:
    """The line through the smallest and the largest call; from one call alone, all bytes are counted to its rows."""
    few, many = min(peaks), max(peaks)
    if few == many:
        return Fit(0.0, peaks[few] / max(few, 1))
    per_row = max(0.0, (peaks[many] - peaks[few]) / (many - few))
    return Fit(max(0.0, peaks[few] - per_row * few), per_row)


def _larger(bucket: Bucket, other: Bucket) -> float:
    return bucket.height * bucket.width / (other.height * other.width)

"""Plans how many rows fit in memory: bytes per call, fitted to measured calls. No torch.

A call of n rows takes `fixed + n * per_row` bytes on top of what is held all the time (weights, prompts, latents). Both
are fitted, by bucket and kind of call, to measured peaks; shapes that have not been measured yet are scaled by pixels,
and corrected once they have run. A size that runs out of memory all the same is not tried again for a while, unless
somebody needs it alone: then what comes of it is his answer.

Steps that were captured as CUDA graphs keep their memory, in a pool, as long as their model is there. The plan counts a
pool beside every call, which may be of a kind that is not captured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final, Literal

from deployments.engine.calibration.figures import PeakFigure
from deployments.engine.padding import padded_size
from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.bounded_measurements import evict_oldest
from deployments.engine.stack_size import NO_STACKS, StackSize
from deployments.engine.synchronized import Synchronized, synchronized

Kind = Literal["denoise", "control", "decode", "encode", "check"]
"""A UNet call, by its rows; what ControlNets add to it, by theirs; a VAE call either way and a safety check, by their
images.
"""

RESERVE: Final = 0.1
"""The share of the budget that is never planned with: allocators split their blocks, and others use the device too."""

AFTER_RUNNING_OUT: Final = 300.0
"""Seconds for which a size that ran out of memory is not tried again."""

GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class LinearFit:
    """The bytes of a call as a line: `fixed + rows * per_row`."""

    fixed: float
    per_row: float

    def bytes(self, rows: int) -> int:
        return round(self.fixed + rows * self.per_row)


class MemoryPlan(Synchronized):
    """Measured and predicted bytes of calls. The engine's and the decoder's threads record them; others read.

    `budget` is all the bytes there are, or None for no limit; `sizes` are what UNet calls are padded to.
    """

    def __init__(self, budget: int | None, sizes: Sequence[int], clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self.budget = budget
        self._sizes = tuple(sizes)
        self._clock = clock
        self._peaks: dict[tuple[Kind, Bucket], dict[int, int]] = {}
        self._too_much: dict[tuple[Bucket, int], float] = {}
        self._pools: dict[Bucket, int] = {}
        self._aside = 0
        self._tiles: Mapping[str, int] = {}

    @property
    def limit(self) -> float:
        """The bytes that may be planned with."""
        return float("inf") if self.budget is None else self.budget * (1 - RESERVE)

    @synchronized
    def has_measured(self, kind: Kind, bucket: Bucket, rows: int) -> bool:
        """Returns True if such a call has been measured."""
        return rows in self._peaks.get((kind, bucket), {})

    @synchronized
    def record_peak(self, kind: Kind, bucket: Bucket, rows: int, peak: int) -> None:
        """Records a call of `rows` that used `peak` bytes at once, on top of what was held before."""
        evict_oldest(self._peaks, (kind, bucket))
        self._peaks.setdefault((kind, bucket), {})[rows] = peak

    @synchronized
    def record_out_of_memory(self, bucket: Bucket, rows: int) -> None:
        """Records a UNet call of `rows` that ran out of memory."""
        self._too_much[bucket, rows] = self._clock() + AFTER_RUNNING_OUT

    @synchronized
    def record_pool(self, bucket: Bucket, pool: int) -> None:
        """Records the bytes that the captured steps of a bucket keep to themselves."""
        self._pools[bucket] = pool

    @synchronized
    def drop_pools(self, model: str) -> None:
        """Records that the captured steps of a model are gone."""
        self._pools = {bucket: pool for bucket, pool in self._pools.items() if bucket.model != model}

    @synchronized
    def set_aside(self, size: int) -> None:
        """Sets the bytes of work that may run beside any call, whatever that is: a tile of an upscaler."""
        self._aside = size

    @synchronized
    def set_tiles(self, tiles: Mapping[str, int]) -> None:
        """Sets the pixels of a tile, by model, of those whose VAE sees larger pictures in tiles."""
        self._tiles = tiles

    @synchronized
    def pool_bytes(self) -> int:
        """Returns the bytes that all captured steps keep to themselves."""
        return sum(self._pools.values())

    @synchronized
    def may_capture(self, bucket: Bucket, size: int, held: int, decode_batch: int = 1) -> bool:
        """Returns True if a step of `size` rows may be captured beside `held` bytes.

        Then its pool leaves room for a call of that size which is not captured, beside a VAE call.
        """
        own = self._pools.get(bucket, 0)
        expected = max(own, self.predict("denoise", bucket, size))
        return size <= self.rows(bucket, held + expected - own, decode_batch=decode_batch)

    @synchronized
    def predict(self, kind: Kind, bucket: Bucket, rows: int) -> int:
        """Returns the bytes of a call; 0 if nothing like it has been measured."""
        peaks = self._peaks.get((kind, bucket), {})
        if rows in peaks:
            return peaks[rows]
        if peaks:
            return _fit(peaks).bytes(rows)
        known = [where for what, where in self._peaks if what == kind]
        if not known and kind == "encode":
            # The VAE's other half: what it holds is no more, by its layers' widths.
            return self.predict("decode", bucket, rows)
        if not known or not rows:
            return 0
        near = min(known, key=lambda other: (other.model != bucket.model, abs(bucket.area_ratio(other) - 1)))
        ratio = bucket.area_ratio(near)
        if kind in ("decode", "encode"):
            ratio = self._pixels_at_once(bucket) / self._pixels_at_once(near)
        return round(_fit(self._peaks[kind, near]).bytes(rows) * ratio)

    @synchronized
    def call_bytes(
        self, bucket: Bucket, rows: int, control_rows: int = 0, decode_batch: int = 1, encoded: Bucket | None = None
    ) -> int:
        """Returns the bytes of a padded UNet call with its ControlNets, and of what may run beside it.

        That is a VAE call which decodes `decode_batch` images, a safety check of as many, if there are any, a VAE call
        which encodes an image of the size `encoded`, and what is set aside.
        """
        padded = padded_size(min(rows, self._sizes[-1]), self._sizes)
        denoise = self.predict("denoise", bucket, padded) + self.predict("control", bucket, control_rows)
        checked = any(kind == "check" and where.model == bucket.model for kind, where in self._peaks)
        check = self.predict("check", bucket, decode_batch) if checked else 0
        encode = 0 if encoded is None else self.predict("encode", encoded, 1)
        return denoise + self.predict("decode", bucket, decode_batch) + check + encode + self._aside

    @synchronized
    def rows(
        self,
        bucket: Bucket,
        held: int,
        control_rows: int = 0,
        decode_batch: int = 1,
        encoded: Bucket | None = None,
        stacks: StackSize = NO_STACKS,
        least: int = 1,
    ) -> int:
        """Returns the UNet rows of `bucket` that may run at once beside `held` bytes and all pools, or 0.

        `encoded` is as in `call_bytes`; `stacks` are those of the call. Somebody needs `least` rows alone: what was
        guessed, or has run out, only bounds how many share a call.
        """
        if self.budget is not None and not any(where.model == bucket.model for _, where in self._peaks):
            return min(self._sizes[-1], max(least, 2 * guess_images(self.budget)))
        held += self.pool_bytes()
        alone = padded_size(least, self._sizes)
        fitting = [
            size
            for size in self._sizes
            if held + self.call_bytes(bucket, size, control_rows, decode_batch, encoded) + stacks.bytes(size)
            <= self.limit
            and (size <= alone or not self._has_run_out(bucket, size))
        ]
        return max(fitting, default=0)

    @synchronized
    def figures(self) -> dict[tuple[Kind, Bucket, int], tuple[int, int]]:
        """Returns, for every measured call, its bytes and those that the fit predicts."""
        return {
            (kind, bucket, rows): (peak, _fit(peaks).bytes(rows))
            for (kind, bucket), peaks in list(self._peaks.items())
            for rows, peak in sorted(peaks.items())
        }

    @synchronized
    def export(self, model: str) -> tuple[PeakFigure, ...]:
        """Returns the measured peaks of one model, to be kept for the next start."""
        return tuple(
            PeakFigure(kind=kind, width=bucket.width, height=bucket.height, rows=rows, bytes=peak)
            for (kind, bucket), peaks in self._peaks.items()
            if bucket.model == model
            for rows, peak in peaks.items()
        )

    @synchronized
    def restore(self, model: str, peaks: Sequence[PeakFigure]) -> None:
        """Takes over what `export` returned for an equal model at an earlier start."""
        for peak in peaks:
            self._peaks.setdefault((peak.kind, Bucket(model, peak.height, peak.width)), {})[peak.rows] = peak.bytes

    def _pixels_at_once(self, bucket: Bucket) -> int:
        """Returns the pixels of a picture that the VAE sees at once."""
        pixels = bucket.height * bucket.width
        return min(pixels, self._tiles.get(bucket.model, pixels))

    def _has_run_out(self, bucket: Bucket, size: int) -> bool:
        """Returns True if a call of this size, or a smaller one, ran out of memory lately."""
        now = self._clock()
        self._too_much = {call: until for call, until in self._too_much.items() if until > now}
        return any(where == bucket and failed <= size for where, failed in self._too_much)


def guess_images(budget: int) -> int:
    """Returns the images that run at once before anything is measured: 4 with 24 GB, 2 with 16 GB, else 1."""
    if budget >= 23 * GIB:
        return 4
    return 2 if budget >= 15 * GIB else 1


def _fit(peaks: dict[int, int]) -> LinearFit:
    """Fits a line through the smallest and the largest call; with one call alone, all bytes are counted to its rows."""
    few, many = min(peaks), max(peaks)
    if few == many:
        return LinearFit(0.0, peaks[few] / max(few, 1))
    per_row = max(0.0, (peaks[many] - peaks[few]) / (many - few))
    return LinearFit(max(0.0, peaks[few] - per_row * few), per_row)

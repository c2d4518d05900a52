"""The time that devices take for UNet calls and decoding: measured on CPUs, modelled for GPUs.

Every figure of a GPU here is a model: nothing has been measured on one. `source` says what each model is based on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

from deployments.engine.padding import padded_size, powers_of_two
from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.cost_model import CostModel

MODEL: Final = "sd15"

NATIVE: Final = Bucket(MODEL, 512, 512)

BUCKETS: Final[Mapping[Bucket, float]] = MappingProxyType(
    {NATIVE: 1.0, Bucket(MODEL, 512, 768): 1295 / 803.3, Bucket(MODEL, 768, 768): 2148 / 803.3}
)
"""The sizes of the traces, and how much more arithmetic a row of each is (SD1.5's UNet, counted)."""


@dataclass(frozen=True)
class Device:
    """One replica's device. Seconds everywhere.

    `calls` are UNet calls by bucket and rows, `decode` a picture from latents to file. `prepare` is what the engine's
    thread needs for a request before its rows can begin. `overlap` says how much a decoding beside UNet calls slows
    both: 1 where they share the device evenly, 0 where each has its own. `http_seconds` are added to every request.

    A replica that is asked for is ready after `cold_start`, on a machine that takes `provision` to come where none is
    left. `price` is what an hour of it costs (US dollars; an assumption, for ratios).
    """

    name: str
    calls: Mapping[Bucket, Mapping[int, float]]
    decode: Mapping[Bucket, float]
    prepare: float
    overlap: float
    provision: float
    cold_start: float
    price: float
    source: str
    http_seconds: float = 0.0
    native: Bucket = NATIVE
    largest: int = 32

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """What UNet calls are padded to."""
        return powers_of_two(self.largest)

    @cached_property
    def padded(self) -> tuple[int, ...]:
        """The padded size, by rows."""
        return (0, *(padded_size(rows, self.sizes) for rows in range(1, self.largest + 1)))

    @cached_property
    def padded_calls(self) -> Mapping[Bucket, tuple[float, ...]]:
        """The seconds of a padded call, by bucket and rows."""
        return {
            bucket: tuple(calls[size] if size else 0.0 for size in self.padded) for bucket, calls in self.calls.items()
        }

    @cached_property
    def row_seconds(self) -> Mapping[Bucket, float]:
        """A row's share of a call that is as full as it pays."""
        costs = self.costs()
        return {bucket: costs.row_seconds(bucket) for bucket in self.calls}

    def costs(self) -> CostModel:
        """The engine's own table, as if it had measured all this, with the knee that it finds at warm-up."""
        costs = CostModel(self.sizes)
        for bucket, calls in self.calls.items():
            for rows, seconds in calls.items():
                costs.record_call(bucket, rows, 0, seconds)
            costs.record_decode(bucket, self.decode[bucket])
        costs.find_knee(self.native)
        return costs

    def exactly(self, bucket: Bucket, rows: int) -> float:
        """A call of `rows` that is not padded, between the two sizes that are known. For engines that do not pad."""
        calls = self.calls[bucket]
        above = padded_size(min(rows, self.sizes[-1]), self.sizes)
        if above == rows or above == self.sizes[0]:
            return calls[above]
        below = self.sizes[self.sizes.index(above) - 1]
        return calls[below] + (calls[above] - calls[below]) * (rows - below) / (above - below)


def _modelled(calls: Mapping[int, float], decode: float) -> tuple[dict[Bucket, dict[int, float]], dict[Bucket, float]]:
    """Milliseconds at 512 x 512, in seconds for every bucket. A picture's decoding grows with its pixels."""
    by_bucket = {bucket: {rows: ms * more / 1000 for rows, ms in calls.items()} for bucket, more in BUCKETS.items()}
    pixels = {bucket: bucket.height * bucket.width / (512 * 512) for bucket in BUCKETS}
    return by_bucket, {bucket: decode * more / 1000 for bucket, more in pixels.items()}


def _line(fixed: float, per_row: float) -> dict[int, float]:
    return {rows: fixed + per_row * rows for rows in powers_of_two(32)}


_H100 = _modelled({1: 3.6, 2: 5.7, 4: 9.7, 8: 17.4, 16: 32.4, 32: 62.0}, decode=7.5)
# Through 20.1 ms at 2 rows, 57.8 at 8 and 213.7 at 32; within 2 % of each.
_A100 = _modelled(_line(7.4, 6.42), decode=30.0)
_L4 = _modelled(_line(7.4, 6.42 * 312 / 121), decode=30.0 * 312 / 121)

_PROVISION_S: Final = 120.0
_COLD_START_S: Final = 45.0
_PREPARE_S: Final = 0.004

H100: Final = Device(
    name="H100",
    calls=_H100[0],
    decode=_H100[1],
    prepare=_PREPARE_S,
    overlap=1.0,
    provision=_PROVISION_S,
    cold_start=_COLD_START_S,
    price=4.0,
    source="tile model of an H200, which computes as an H100 SXM does: fused kernels, CUDA graphs, fp16",
)
A100: Final = Device(
    name="A100",
    calls=_A100[0],
    decode=_A100[1],
    prepare=_PREPARE_S,
    overlap=1.0,
    provision=_PROVISION_S,
    cold_start=_COLD_START_S,
    price=2.5,
    source="a line through diffusers' published 49.7, 17.3 and 4.68 steps/s at 1, 4 and 16 guided images, compiled",
)
L4: Final = Device(
    name="L4",
    calls=_L4[0],
    decode=_L4[1],
    prepare=_PREPARE_S,
    overlap=1.0,
    provision=_PROVISION_S,
    cold_start=_COLD_START_S,
    price=0.8,
    source="the A100's line, a row slower by the ratio of dense fp16 peaks (312 to 121 TFLOP/s)",
)

GPUS: Final[Mapping[str, Device]] = MappingProxyType({device.name: device for device in (L4, A100, H100)})

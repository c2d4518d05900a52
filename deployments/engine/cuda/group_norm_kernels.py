"""Triton kernels for group normalization (Wu and He, 2018) of channels-last activations. Importing it needs Triton.

An activation is [rows, pixels, channels] in memory. One program per (row, group) would leave most of a GPU idle at a
few rows, so the pixels are split: `measure_slabs` takes the mean of each channel in each slab of pixels,
`combine_slabs` makes each group's of these, and `normalize_pixels` applies it. Slabs do not depend on the number of
rows, and so neither do a row's bits.
"""

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

SLAB_PIXELS: Final = 128
_PIXELS: Final = 32
_CHANNELS: Final = 64
_TILE: Final = 1024


@triton.jit
def measure_slabs(
    x: tl.tensor,
    partial: tl.tensor,
    pixels: tl.tensor,
    channels: tl.tensor,
    slabs: tl.tensor,
    SLAB: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Writes each channel's mean in a slab, and the sum of squared deviations from it: [rows, slabs, 2, channels].

    The tiles' own means are combined (Chan et al., 1979), which is exact where sums of squares cancel.
    """
    slab, row = tl.program_id(0), tl.program_id(2)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    start = row.to(tl.int64) * pixels * channels
    mean = tl.zeros((BLOCK_C,), tl.float32)
    deviation = tl.zeros((BLOCK_C,), tl.float32)
    counted = 0.0
    for offset in range(0, SLAB, BLOCK_P):
        pixel = slab * SLAB + offset + tl.arange(0, BLOCK_P)
        there = pixel < pixels
        taken = tl.sum(there.to(tl.float32), axis=0)
        mask = there[:, None] & inside[None, :]
        values = tl.load(x + start + pixel[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        tile_mean = tl.sum(values, axis=0) / tl.maximum(taken, 1.0)
        centred = tl.where(there[:, None], values - tile_mean[None, :], 0.0)
        tile_deviation = tl.sum(centred * centred, axis=0)
        total = tl.maximum(counted + taken, 1.0)
        change = tile_mean - mean
        deviation += tile_deviation + change * change * (counted * taken / total)
        mean += change * (taken / total)
        counted += taken
    place = (row * slabs + slab) * 2 * channels + channel
    tl.store(partial + place, mean, mask=inside)
    tl.store(partial + place + channels, deviation, mask=inside)


@triton.jit
def combine_slabs(
    partial: tl.tensor,
    statistics: tl.tensor,
    pixels: tl.tensor,
    channels: tl.tensor,
    slabs: tl.tensor,
    group_channels: tl.tensor,
    eps: tl.tensor,
    SLAB: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Writes the mean and the reciprocal standard deviation of one group: [rows, groups, 2]."""
    group, row = tl.program_id(0), tl.program_id(1)
    index = tl.arange(0, BLOCK_C)
    inside = index < group_channels
    channel = group * group_channels + index
    size = (pixels * group_channels).to(tl.float32)
    total = 0.0
    for offset in range(0, slabs, BLOCK_S):
        slab = offset + tl.arange(0, BLOCK_S)
        counted = tl.minimum(tl.maximum(pixels - slab * SLAB, 0), SLAB).to(tl.float32)
        mask = (slab < slabs)[:, None] & inside[None, :]
        place = (row * slabs + slab[:, None]) * 2 * channels + channel[None, :]
        total += tl.sum(tl.sum(tl.load(partial + place, mask=mask, other=0.0) * counted[:, None], axis=1), axis=0)
    mean = total / size
    deviation = 0.0
    for offset in range(0, slabs, BLOCK_S):
        slab = offset + tl.arange(0, BLOCK_S)
        counted = tl.minimum(tl.maximum(pixels - slab * SLAB, 0), SLAB).to(tl.float32)
        mask = (slab < slabs)[:, None] & inside[None, :]
        place = (row * slabs + slab[:, None]) * 2 * channels + channel[None, :]
        change = tl.load(partial + place, mask=mask, other=0.0) - mean
        within = tl.load(partial + place + channels, mask=mask, other=0.0)
        deviation += tl.sum(tl.sum(tl.where(mask, within + counted[:, None] * change * change, 0.0), axis=1), axis=0)
    place = (row * tl.num_programs(0) + group) * 2
    tl.store(statistics + place, mean)
    tl.store(statistics + place + 1, 1.0 / tl.sqrt(deviation / size + eps))


@triton.jit
def normalize_pixels(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    statistics: tl.tensor,
    y: tl.tensor,
    pixels: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    group_channels: tl.tensor,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Writes (x - mean) / deviation * weight + bias, of which SiLU is taken if wanted."""
    row = tl.program_id(2)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    group = (row * groups + channel // group_channels) * 2
    mean = tl.load(statistics + group, mask=inside, other=0.0)
    scale = tl.load(statistics + group + 1, mask=inside, other=0.0)
    scale *= tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    place = row.to(tl.int64) * pixels * channels + pixel[:, None] * channels + channel[None, :]
    mask = (pixel < pixels)[:, None] & inside[None, :]
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    values = (values - mean[None, :]) * scale[None, :] + shift[None, :]
    if SILU:
        values = values / (1.0 + tl.exp(-values))
    tl.store(y + place, values.to(y.dtype.element_ty), mask=mask)


def launch_group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """Returns the normalized `x` [B, C, h, w], channels-last like the answer; statistics are taken in fp32."""
    rows, channels, height, width = x.shape
    pixels, group_channels = height * width, channels // groups
    slabs = triton.cdiv(pixels, SLAB_PIXELS)
    chunks = triton.cdiv(channels, _CHANNELS)
    x = x.contiguous(memory_format=torch.channels_last)
    partial = torch.empty((rows, slabs, 2, channels), dtype=torch.float32, device=x.device)
    statistics = torch.empty((rows, groups, 2), dtype=torch.float32, device=x.device)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    measure_slabs[slabs, chunks, rows](x, partial, pixels, channels, slabs, **MEASURE)
    combine_slabs[groups, rows](
        partial, statistics, pixels, channels, slabs, group_channels, eps, **combine_blocks(group_channels)
    )
    normalize_pixels[triton.cdiv(pixels, _PIXELS), chunks, rows](
        x, weight, bias, statistics, y, pixels, channels, groups, group_channels, SILU=silu, **NORMALIZE
    )
    return y


MEASURE: Final[dict[str, Any]] = {"SLAB": SLAB_PIXELS, "BLOCK_P": _PIXELS, "BLOCK_C": _CHANNELS}
NORMALIZE: Final[dict[str, Any]] = {"BLOCK_P": _PIXELS, "BLOCK_C": _CHANNELS}


def combine_blocks(group_channels: int) -> dict[str, Any]:
    """Returns the block sizes of `combine_slabs`."""
    width = triton.next_power_of_2(group_channels)
    return {"SLAB": SLAB_PIXELS, "BLOCK_S": max(1, _TILE // width), "BLOCK_C": width}

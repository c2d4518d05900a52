"""What the kernels are tried on, and how exact they must be. No Triton here."""

from typing import Final, NamedTuple

import torch
from torch import Tensor

GUIDE: Final = 7.5


class Norm(NamedTuple):
    """A group normalization of random activations [rows, channels, height, width] around `mean`."""

    rows: int
    channels: int
    height: int
    width: int
    groups: int
    dtype: torch.dtype
    silu: bool = True
    mean: float = 0.5


NORMS: Final = {
    "whole slabs": Norm(2, 64, 16, 16, 32, torch.float32),
    "a ragged slab, and channels that fill no block": Norm(3, 40, 13, 7, 4, torch.float32),
    "as SD1.5's first block, in half precision": Norm(1, 320, 16, 9, 32, torch.float16),
    "bfloat16": Norm(2, 48, 5, 5, 16, torch.bfloat16),
    "one pixel": Norm(2, 32, 1, 1, 4, torch.float32),
    "without SiLU": Norm(2, 24, 11, 3, 3, torch.float16, silu=False),
    "a mean that sums of squares would drown in": Norm(1, 32, 20, 10, 2, torch.float32, mean=200.0),
}


class Update(NamedTuple):
    """A step of `rows`, with what the UNet answers in, and whether channels-last."""

    rows: int
    channels: int
    height: int
    width: int
    dtype: torch.dtype
    channels_last: bool


UPDATES: Final = {
    "one block": Update(2, 4, 16, 16, torch.float32, False),
    "ragged, channels-last half precision": Update(3, 4, 9, 13, torch.float16, True),
    "three channels": Update(1, 3, 8, 24, torch.float32, True),
}


def limit(dtype: torch.dtype) -> float:
    """The relative error that is allowed: half precision rounds the answer itself."""
    return {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]


def norm_arguments(case: Norm) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((case.rows, case.channels, case.height, case.width), generator=generator) + case.mean
    weight, bias = torch.randn((2, case.channels), generator=generator)
    return x.to(case.dtype).to(memory_format=torch.channels_last), weight.to(case.dtype), bias.to(case.dtype)


def update_arguments(case: Update) -> tuple[Tensor, ...]:
    """Arguments of `guide_and_advance`: the first row without guidance and blending, the others with both."""
    generator = torch.Generator().manual_seed(0)
    rows, channels, height, width, dtype, channels_last = case

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    answers = noise(2 * rows, channels, height, width).to(dtype)
    if channels_last:
        answers = answers.to(memory_format=torch.channels_last)
    prompted, partner = torch.arange(rows).flip(0), torch.arange(rows) + rows
    scale = torch.full((rows,), GUIDE)
    partner[0], scale[0] = prompted[0], 1.0
    mask = (noise(rows, 1, height, width) > 0).float()
    mask[0] = 1.0
    maps = [noise(rows, channels, height, width) for _ in range(3)]
    states = noise(rows, 8, channels, height, width)
    return states, answers, prompted, partner, scale, noise(rows, 10), *maps, mask, noise(rows, 2)


def relative_error(answer: Tensor, exact: Tensor) -> float:
    return float((answer.double() - exact).norm() / exact.norm())

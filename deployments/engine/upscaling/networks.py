"""The networks of upscalers: RRDBNet of ESRGAN and Real-ESRGAN, and Real-ESRGAN's compact one.

Both take [N, 3, h, w] in 0..1 and return [N, 3, h * scale, w * scale]. Their parameters have the names of BasicSR's
files, so that these load as they are.
"""

from itertools import pairwise
from math import isqrt
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

_SLOPE: Final = 0.2
_SHARE: Final = 0.2
"""The share of a block's output that is added to its input (Wang et al. 2018, section 3.1)."""


class RRDBNet(nn.Module):
    """Residual-in-residual dense blocks in low resolution, then doublings (ESRGAN, Wang et al. 2018).

    `shrink` n packs n x n pixels into channels first, as Real-ESRGAN (Wang et al. 2021) does for scales below 4. The
    scale is 2^doublings / shrink.
    """

    def __init__(self, features: int, blocks: int, growth: int, doublings: int, shrink: int = 1) -> None:
        super().__init__()
        self.shrink = shrink
        self.scale = 2**doublings // shrink
        self.conv_first = _conv(3 * shrink**2, features)
        self.body = nn.Sequential(*(_ResidualBlock(features, growth) for _ in range(blocks)))
        self.conv_body = _conv(features, features)
        self.conv_up = nn.ModuleList(_conv(features, features) for _ in range(doublings))
        self.conv_hr = _conv(features, features)
        self.conv_last = _conv(features, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        if self.shrink > 1:
            pixels = functional.pixel_unshuffle(_pad_to_multiple(pixels, self.shrink), self.shrink)
        shallow = self.conv_first(pixels)
        deep = shallow + self.conv_body(self.body(shallow))
        for conv in self.conv_up:
            deep = functional.leaky_relu(conv(functional.interpolate(deep, scale_factor=2.0)), _SLOPE)
        enlarged: Tensor = self.conv_last(functional.leaky_relu(self.conv_hr(deep), _SLOPE))
        return enlarged[:, :, : height * self.scale, : width * self.scale]


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees the outputs of all before it."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        seen = [features + index * growth for index in range(5)]
        for index, (channels, after) in enumerate(pairwise([*seen, 0]), start=1):
            self.add_module(f"conv{index}", _conv(channels, growth if after else features))

    def forward(self, inputs: Tensor) -> Tensor:
        seen = [inputs]
        for index in range(1, 5):
            seen.append(functional.leaky_relu(self.get_submodule(f"conv{index}")(torch.cat(seen, 1)), _SLOPE))
        added: Tensor = self.get_submodule("conv5")(torch.cat(seen, 1))
        return inputs + _SHARE * added


class _ResidualBlock(nn.Module):
    """Three dense blocks around which the input is led."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (_DenseBlock(features, growth) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        deep: Tensor = self.rdb3(self.rdb2(self.rdb1(inputs)))
        return inputs + _SHARE * deep


class CompactNet(nn.Module):
    """Convolutions in low resolution alone, whose last one makes all pixels (Real-ESRGAN's SRVGGNetCompact)."""

    def __init__(self, features: int, convolutions: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [_conv(3, features), nn.PReLU(features)]
        for _ in range(convolutions):
            layers += [_conv(features, features), nn.PReLU(features)]
        self.body = nn.Sequential(*layers, _conv(features, 3 * scale**2))

    def forward(self, pixels: Tensor) -> Tensor:
        # It learns what repeating pixels lacks.
        repeated = functional.interpolate(pixels, scale_factor=float(self.scale))
        return repeated + functional.pixel_shuffle(self.body(pixels), self.scale)


def compact_scale(last: Tensor) -> int:
    """Returns the scale of a CompactNet by its last convolution's weight."""
    return isqrt(last.shape[0] // 3)


def _conv(channels: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, 3, padding=1)


def _pad_to_multiple(pixels: Tensor, step: int) -> Tensor:
    height, width = pixels.shape[2:]
    return functional.pad(pixels, (0, -width % step, 0, -height % step), "replicate")

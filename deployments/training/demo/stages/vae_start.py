"""Where the VAE's training starts: at a network that already passes colours through, blurred.

GroupNorm takes a flat area's level away and leaves nothing to tell red from blue, so a VAE this narrow spends most of
its training finding a way around it. Here each stream carries constants of both signs beside the signal: the norm
then divides by the constants and lets the signal's level live. Three channels carry red, green and blue from end to
end, averaged on the way down; all else starts at random and learns edges.
"""

from __future__ import annotations

from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import nn

_CARRIERS: Final = (0, 2, 4)
_CONSTANT: Final = 2.0
# silu(1) and 1 / silu'(1): the norm puts a carrier around 1, where SiLU is almost straight.
_MIDDLE: Final = 0.7311
_STRAIGHTEN: Final = _CONSTANT / 0.9277


@torch.no_grad()
def start(vae: AutoencoderKL) -> AutoencoderKL:
    """Set the weights of a fresh VAE, in place, to the colour-passing start."""
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        match name.split(".")[-1]:
            case "conv1":
                _add_constants(module)
            case "conv2":
                module.weight *= 0.2
            case "conv_shortcut":
                _carry(module, 1.0)
            case "conv" if "downsamplers" in name:
                _carry(module, 0.25, slice(0, 2))
            case "conv":
                _carry(module, 1.0)
    _set_ends(vae)
    return vae


def _set_ends(vae: AutoencoderKL) -> None:
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        _carry(conv, 1.0, sources=(0, 1, 2))
        conv.bias[list(_CARRIERS)] = _CONSTANT
    for conv in (vae.encoder.conv_out, vae.decoder.conv_out):
        conv.weight *= 0.5
        _carry(conv, _STRAIGHTEN, targets=(0, 1, 2), constants=False)
        conv.bias[:3] = -_STRAIGHTEN * _MIDDLE
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight[:4] = 0
        conv.weight[range(4), range(4)] = 1.0
        conv.bias[:4] = 0
    # A fresh encoder's variance is 1, which would drown its means.
    vae.quant_conv.weight[4:] *= 0.1
    vae.quant_conv.bias[4:] = -5.0


def _add_constants(conv: nn.Conv2d) -> None:
    assert conv.bias is not None
    conv.bias[0::2], conv.bias[1::2] = _CONSTANT, -_CONSTANT


def _carry(
    conv: nn.Conv2d,
    gain: float,
    taps: slice | None = None,
    sources: tuple[int, ...] = _CARRIERS,
    targets: tuple[int, ...] = _CARRIERS,
    constants: bool = True,
) -> None:
    """Make `targets` copies of `sources`, `gain` on each of the kernel's `taps` (its centre by default)."""
    assert conv.bias is not None
    if constants:
        _add_constants(conv)
    centre = conv.kernel_size[0] // 2
    taps = taps or slice(centre, centre + 1)
    for source, target in zip(sources, targets, strict=True):
        conv.weight[target] = 0
        conv.weight[target, source, taps, taps] = gain
        conv.bias[target] = 0

"""Decodes large pictures in overlapping tiles, as diffusers' `enable_tiling` does, so that memory stays that of one."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

_OVERLAP: Final = 0.25
"""The share of a tile that its neighbour has, too: there one fades into the other. diffusers' own figure."""


def tile_side(vae: Any) -> int:
    """Returns the side of a tile in pixels: what `vae`, an AutoencoderKL, was trained for."""
    size = vae.config.sample_size
    return int(size if isinstance(size, int) else size[0])


def decode_in_tiles(decode: Callable[[Tensor], Tensor], latents: Tensor, side: int, factor: int) -> Tensor:
    """Returns pixels [B, 3, H, W] of `latents` [B, C, h, w], decoded in tiles of `side` x `side` pixels by `decode`.

    `factor` is the pixels per latent in each direction. Latents that are no larger than a tile are decoded at once.
    """
    tile = side // factor
    if max(latents.shape[2:]) <= tile:
        return decode(latents)
    step, fading = int(tile * (1 - _OVERLAP)), int(side * _OVERLAP)
    kept = side - fading
    above: list[Tensor] = []
    strips = []
    for top in range(0, latents.shape[2], step):
        row: list[Tensor] = []
        for column, left in enumerate(range(0, latents.shape[3], step)):
            # Cloned: a decoder may give a view of what it keeps.
            made = decode(latents[:, :, top : top + tile, left : left + tile]).clone()
            if above:
                _fade(above[column], made, fading, dim=2)
            if row:
                _fade(row[-1], made, fading, dim=3)
            row.append(made)
        strips.append(torch.cat([made[:, :, :kept, :kept] for made in row], dim=3))
        above = row
    return torch.cat(strips, dim=2)


def _fade(before: Tensor, tile: Tensor, pixels: int, dim: int) -> None:
    """Fades from the end of the tile `before` to the beginning of `tile`, along `dim`, over at most so many pixels."""
    pixels = min(before.shape[dim], tile.shape[dim], pixels)
    shape = [1, 1, 1, 1]
    shape[dim] = pixels
    share = (torch.arange(pixels, device=tile.device, dtype=tile.dtype) / pixels).view(shape)
    begin = tile.narrow(dim, 0, pixels)
    end = before.narrow(dim, before.shape[dim] - pixels, pixels)
    begin.copy_(end * (1 - share) + begin * share)

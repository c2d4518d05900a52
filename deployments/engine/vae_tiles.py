"""Runs a VAE over large pictures in overlapping tiles, as diffusers' `enable_tiling` does, so that memory stays that of
one.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

_OVERLAP: Final = 0.25
"""The share of a tile that its neighbour has, too: there one fades into the other. diffusers' own figure."""

Network = Callable[[Tensor], Tensor]


def tile_side(vae: Any) -> int:
    """Returns the side of a tile in pixels: what `vae`, an AutoencoderKL, was trained for."""
    size = vae.config.sample_size
    return int(size if isinstance(size, int) else size[0])


def latent_factor(vae: Any) -> int:
    """Returns the pixels per latent in each direction."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def decode_in_tiles(decode: Network, latents: Tensor, side: int, factor: int) -> Tensor:
    """Returns pixels [B, 3, H, W] of `latents` [B, C, h, w], decoded in tiles of `side` x `side` pixels by `decode`.

    `factor` is the pixels per latent in each direction. Latents that are no larger than a tile are decoded at once.
    """
    return _run_in_tiles(decode, latents, side // factor, side)


def encode_in_tiles(encode: Network, pixels: Tensor, side: int, factor: int) -> Tensor:
    """Returns the parameters [B, 2C, h, w] of the distribution of latents of `pixels` [B, 3, H, W], encoded in such
    tiles by `encode`.
    """
    return _run_in_tiles(encode, pixels, side, side // factor)


def _run_in_tiles(run: Network, given: Tensor, tile: int, made_of_tile: int) -> Tensor:
    """Returns what `run` makes of `given` [B, C, H, W] in tiles of `tile` x `tile`, each made to one of `made_of_tile`
    x `made_of_tile`.
    """
    if max(given.shape[2:]) <= tile:
        return run(given)
    step, fading = int(tile * (1 - _OVERLAP)), int(made_of_tile * _OVERLAP)
    kept = made_of_tile - fading
    above: list[Tensor] = []
    strips = []
    for top in range(0, given.shape[2], step):
        row: list[Tensor] = []
        for column, left in enumerate(range(0, given.shape[3], step)):
            # Cloned: a network may give a view of what it keeps.
            made = run(given[:, :, top : top + tile, left : left + tile]).clone()
            if above:
                _fade(above[column], made, fading, dim=2)
            if row:
                _fade(row[-1], made, fading, dim=3)
            row.append(made)
        strips.append(torch.cat([made[:, :, :kept, :kept] for made in row], dim=3))
        above = row
    return torch.cat(strips, dim=2)


def _fade(before: Tensor, tile: Tensor, extent: int, dim: int) -> None:
    """Fades from the end of the tile `before` to the beginning of `tile`, along `dim`, over at most `extent` places."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    shape = [1, 1, 1, 1]
    shape[dim] = extent
    share = (torch.arange(extent, device=tile.device, dtype=tile.dtype) / extent).view(shape)
    begin = tile.narrow(dim, 0, extent)
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    begin.copy_(end * (1 - share) + begin * share)

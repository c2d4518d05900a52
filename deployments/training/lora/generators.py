"""Random numbers that depend on a training's seed and a place alone, wherever and however often they are drawn."""

from __future__ import annotations

from typing import Final

import torch

_MASK: Final = 2**64 - 1


def generator_of(seed: int, *place: int) -> torch.Generator:
    """Returns a CPU generator that depends on nothing but its arguments, each below 2**32."""
    mixed = 0
    for part in (seed, *place):
        # splitmix64's finaliser (Steele et al. 2014): neighbouring steps get unrelated streams.
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return torch.Generator("cpu").manual_seed(mixed >> 1)

"""Starting a smaller network from a larger one that has learnt already: layers left out, and fewer channels kept.

Where the smaller network is narrower, of each group of channels that the larger one normalises together the first few
are kept. That cuts through what it knew; some hundred iterations mend it, where learning anew takes thousands.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

_WIDEST: Final = 128  # of the demo UNet
_STRIPE: Final = _WIDEST // 8  # channels of one group


@torch.no_grad()
def start_from(pupil: nn.Module, master: nn.Module) -> None:
    """Fill `pupil`, in place, with the weights of `master` that it has a place for; the others stay as they are.

    Sides of a weight that are smaller in `pupil` are thinned out evenly, larger ones are filled from the front, with
    zeros behind: a UNet of nine channels begins by looking at the first four alone.
    """
    known = master.state_dict()
    for name, weight in pupil.state_dict().items():
        if name in known:
            weight.copy_(_fitted(known[name], weight.shape))


def _fitted(source: Tensor, shape: torch.Size) -> Tensor:
    if source.ndim > len(shape):  # a 1x1 convolution that is a linear layer here
        source = source.flatten(len(shape) - 1)
    for dim, size in enumerate(shape):
        if size < source.shape[dim]:
            source = source.index_select(dim, _kept(source.shape[dim], size))
        elif size > source.shape[dim]:
            extra = list(source.shape)
            extra[dim] = size - source.shape[dim]
            source = torch.cat([source, source.new_zeros(extra)], dim=dim)
    return source


def _kept(old: int, new: int) -> Tensor:
    """Which `new` of `old` channels stay, evenly from every stripe. Where a wide layer's channels are joined with a
    narrower one's, which comes after them, the wide ones alone are thinned out.
    """
    wide = old - old % _WIDEST
    keep = _STRIPE - (old - new) * _STRIPE // wide
    index = torch.arange(old)
    return index[(index >= wide) | (index % _STRIPE < keep)]

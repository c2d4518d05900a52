"""What LoRAs change in one layer, and how several of them become one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class LayerUpdate:
    """A change of one layer: y = gain * (layer(x) - bias) + bias + up(down(x)), exactly what merging it into the
    layer's weight gives.

    `down` is [rank, in] for a Linear and [rank, in, kh, kw] for a Conv2d, where it has the layer's own stride, padding
    and dilation. `up` is [out, rank]; for a Conv2d it is a 1x1 convolution. Every scale is part of `up`. `gain` is
    [out], None where it is 1. The rank is at least 1. All are float32 on the CPU.
    """

    down: Tensor
    up: Tensor
    gain: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of rows of `down`."""
        return self.down.shape[0]


def combine(updates: Sequence[Mapping[str, LayerUpdate]]) -> dict[str, LayerUpdate]:
    """Returns the updates, by layer, that change each layer by the sum of what `updates` change in it.

    Ranks add up. Of the gains, what they add to 1 does.
    """
    layers: dict[str, list[LayerUpdate]] = {}
    for update in updates:
        for name, layer in update.items():
            layers.setdefault(name, []).append(layer)
    return {name: _combine_layer(layer) for name, layer in layers.items()}


def _combine_layer(updates: Sequence[LayerUpdate]) -> LayerUpdate:
    if len(updates) == 1:
        return updates[0]
    gains = [update.gain for update in updates if update.gain is not None]
    return LayerUpdate(
        torch.cat([update.down for update in updates]),
        torch.cat([update.up for update in updates], dim=1),
        1 + torch.stack([gain - 1 for gain in gains]).sum(dim=0) if gains else None,
    )

"""Changes of a layer's whole weight: differences, factors of its rows or columns, and DoRA's decomposition."""

from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from deployments.engine.lora.adapter import LayerChange
from deployments.engine.lora.layer_update import LayerUpdate
from deployments.engine.lora.low_rank import check_shape, factors_of, fold

_KEPT_SCALES: Final = 8


@dataclass(frozen=True, eq=False)
class Difference(LayerChange):
    """W + scale * `change` (LyCORIS' `full`), of the weight's shape."""

    change: Tensor

    def check(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Raises ValueError, which tells both shapes, if `layer` has another one."""
        check_shape(layer, tuple(self.change.shape))

    def update(self, layer: nn.Linear | nn.Conv2d, scale: float) -> LayerUpdate:
        """Returns the update of `layer` at `scale`."""
        down, up = factors_of(fold(self.change, layer))
        return LayerUpdate(down, up * scale)

    @property
    def size(self) -> int:
        """Its bytes in memory."""
        return self.change.nbytes


@dataclass(frozen=True, eq=False)
class Rescaling(LayerChange):
    """IA3 (Liu et al. 2022): W + scale * W * `factors`, which are [in] with `on_input`, else [out]."""

    factors: Tensor
    on_input: bool

    def check(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Raises ValueError, which tells both shapes, if `layer` has another one."""
        side = layer.weight.shape[1 if self.on_input else 0]
        if side != self.factors.shape[0]:
            kind = "inputs" if self.on_input else "outputs"
            raise ValueError(f"which has {side} {kind} here and {len(self.factors)} there")

    def update(self, layer: nn.Linear | nn.Conv2d, scale: float) -> LayerUpdate:
        """Returns the update of `layer` at `scale`."""
        weight = _weight_of(layer)
        if self.on_input:
            down, up = factors_of(weight * along_inputs(self.factors, weight))
            return LayerUpdate(down, up * scale)
        # A rank of 0 would say it better, but torch has no convolution to none.
        nothing = torch.zeros(1, *weight.shape[1:])
        return LayerUpdate(nothing, torch.zeros(weight.shape[0], 1), 1 + scale * self.factors)

    @property
    def size(self) -> int:
        """Its bytes in memory."""
        return self.factors.nbytes


@dataclass(frozen=True, eq=False)
class Decomposed(LayerChange):
    """DoRA (Liu et al. 2024): (W + scale * change) * magnitude / ||W + scale * change||.

    `magnitude` is [out], with the norm of each output's weights; or [in] with `on_input`, with that of each input's, as
    LyCORIS writes it.
    """

    change: LayerChange
    magnitude: Tensor
    on_input: bool
    _gains: WeakKeyDictionary[nn.Module, dict[float, Tensor]] = field(default_factory=WeakKeyDictionary)

    def check(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Raises ValueError, which tells both shapes, if `layer` has another one."""
        self.change.check(layer)
        side = layer.weight.shape[1 if self.on_input else 0]
        if side != self.magnitude.shape[0]:
            raise ValueError(f"which has {side} magnitudes here and {len(self.magnitude)} there")

    def update(self, layer: nn.Linear | nn.Conv2d, scale: float) -> LayerUpdate:
        """Returns the update of `layer` at `scale`."""
        inner = self.change.update(layer, scale)
        gain = self._gain(layer, inner, scale)
        if not self.on_input:
            return LayerUpdate(inner.down, inner.up * gain[:, None], gain)
        weight = _weight_of(layer)
        return LayerUpdate(*factors_of(_merge(weight, inner) * along_inputs(gain, weight) - weight))

    def _gain(self, layer: nn.Linear | nn.Conv2d, inner: LayerUpdate, scale: float) -> Tensor:
        """Returns magnitude / ||W + scale * change||; norms over a whole network take long, so some are kept."""
        kept = self._gains.setdefault(layer, {})
        if scale not in kept:
            merged = _merge(_weight_of(layer), inner)
            norms = (merged.transpose(0, 1) if self.on_input else merged).flatten(1).norm(dim=1)
            if len(kept) >= _KEPT_SCALES:
                kept.pop(next(iter(kept)), None)
            # What is all zero stays so, whatever its magnitude.
            kept[scale] = self.magnitude / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        return kept[scale]

    @property
    def size(self) -> int:
        """Its bytes in memory."""
        return self.change.size + self.magnitude.nbytes


def along_inputs(factors: Tensor, weight: Tensor) -> Tensor:
    """Returns [in] so that it can be multiplied with `weight`."""
    return factors.reshape(1, -1, *(1 for _ in weight.shape[2:]))


def _weight_of(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return layer.weight.detach().to("cpu", torch.float32)


def _merge(weight: Tensor, update: LayerUpdate) -> Tensor:
    return weight + (update.up @ update.down.flatten(1)).reshape(weight.shape)

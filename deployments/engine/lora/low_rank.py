"""The plain LoRA (Hu et al. 2021): W + scale * alpha / rank * up @ down."""

from dataclasses import dataclass

from torch import Tensor, nn

from deployments.engine.lora.adapter import LayerChange
from deployments.engine.lora.layer_update import LayerUpdate


@dataclass(frozen=True, eq=False)
class LowRank(LayerChange):
    """`down` is [rank, in] or [rank, in, kh, kw], `up` [out, rank]; `alpha` None counts as the rank."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    def update(self, layer: nn.Linear | nn.Conv2d, scale: float) -> LayerUpdate:
        """Returns the update of `layer` at `scale`. Raises ValueError, which tells both shapes, if it does not fit."""
        rank = self.down.shape[0]
        made_for, has = (self.up.shape[0], *self.down.shape[1:]), tuple(layer.weight.shape)
        if made_for != has:
            raise ValueError(f"{_shape(has)} in this model, as {_shape(made_for)}")
        factor = scale * (1.0 if self.alpha is None else self.alpha / rank)
        return LayerUpdate(self.down, self.up * factor)

    @property
    def size(self) -> int:
        """Its bytes in memory."""
        return self.down.nbytes + self.up.nbytes


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))

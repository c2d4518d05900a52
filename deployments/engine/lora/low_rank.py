"""The plain LoRA (Hu et al. 2021): W + scale * alpha / rank * up @ down; and what makes factors of other changes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deployments.engine.lora.adapter import LayerChange
from deployments.engine.lora.layer_update import LayerUpdate


@dataclass(frozen=True, eq=False)
class LowRank(LayerChange):
    """`down` is [rank, in] or [rank, in, kh, kw], `up` [out, rank]; `alpha` None counts as the rank."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    def check(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Raises ValueError, which tells both shapes, if `layer` has another one."""
        check_shape(layer, (self.up.shape[0], *self.down.shape[1:]))

    def update(self, layer: nn.Linear | nn.Conv2d, scale: float) -> LayerUpdate:
        """Returns the update of `layer` at `scale`."""
        factor = scale * (1.0 if self.alpha is None else self.alpha / self.down.shape[0])
        down, up = bound_rank(fold(self.down, layer), self.up)
        return LayerUpdate(down, up * factor)

    @property
    def size(self) -> int:
        """Its bytes in memory."""
        return self.down.nbytes + self.up.nbytes


def check_shape(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...], *, is_flat: bool = False) -> None:
    """Raises ValueError if `layer`'s weight has another shape. A 1x1 convolution and a Linear are the same. If the
    shape `is_flat`, in and the kernel's sides are multiplied.
    """
    has = tuple(layer.weight.shape)
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        raise ValueError("a convolution in groups, which is not supported")
    same = (has[0], layer.weight[0].numel()) == tuple(shape) if is_flat else _plain(has) == _plain(shape)
    if not same:
        raise ValueError(f"which is {_written(has)} here and {_written(shape)} there")


def fold(factor: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Returns [rank, ...] as [rank, in] for a Linear, [rank, in, kh, kw] for a Conv2d."""
    return factor.reshape(factor.shape[0], *layer.weight.shape[1:])


def bound_rank(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Returns factors of the same product that have no larger rank than the product may have."""
    if down.shape[0] <= min(up.shape[0], down[0].numel()):
        return down, up
    return factors_of((up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:]))


def factors_of(change: Tensor) -> tuple[Tensor, Tensor]:
    """Returns factors whose product is `change`, [out, in] or [out, in, kh, kw]: itself and an identity."""
    out, inside = change.shape[0], change[0].numel()
    if out <= inside:
        return change, torch.eye(out)
    return torch.eye(inside).reshape(inside, *change.shape[1:]), change.flatten(1)


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else tuple(shape)


def _written(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))

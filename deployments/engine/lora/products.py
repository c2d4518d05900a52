"""Changes that are products of smaller matrices (LyCORIS, Yeh et al. 2023), as exact factors of low rank."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deployments.engine.lora.adapter import LayerChange
from deployments.engine.lora.layer_update import LayerUpdate
from deployments.engine.lora.low_rank import check_shape, factors_of, fold


@dataclass(frozen=True, eq=False)
class Hadamard(LayerChange):
    """LoHa: (up1 @ down1) * (up2 @ down2), element by element, times `factor`.

    `ups` are [out, rank], `downs` [rank, in, kh, kw], or [rank, in * kh * kw] if they are `flat`. Its factors of rank
    rank^2 are all products of a column of one with a column of the other (Khatri-Rao).
    """

    ups: tuple[Tensor, Tensor]
    downs: tuple[Tensor, Tensor]
    factor: float
    is_flat: bool

    def check(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Raises ValueError, which tells both shapes, if `layer` has another one."""
        check_shape(layer, (self.ups[0].shape[0], *self.downs[0].shape[1:]), is_flat=self.is_flat)

    def update(self, layer: nn.Linear | nn.Conv2d, scale: float) -> LayerUpdate:
        """Returns the update of `layer` at `scale`."""
        (up1, up2), (down1, down2) = self.ups, (each.flatten(1) for each in self.downs)
        out, inside, rank = up1.shape[0], down1.shape[1], up1.shape[1] * up2.shape[1]
        if rank <= min(out, inside):
            down = (down1[:, None] * down2[None]).reshape(rank, inside)
            up = (up1[:, :, None] * up2[:, None]).reshape(out, rank)
        else:
            down, up = factors_of((up1 @ down1) * (up2 @ down2))
        return LayerUpdate(fold(down, layer), up * (self.factor * scale))

    @property
    def size(self) -> int:
        """Its bytes in memory."""
        return sum(each.nbytes for each in (*self.ups, *self.downs))


@dataclass(frozen=True, eq=False)
class Kronecker(LayerChange):
    """LoKr: the Kronecker product of up1 @ down1 and up2 @ down2, times `factor`. Both are pairs of down and up.

    The first is [out1, in1], the second [out2, in2, kh, kw] or, if `flat`, [out2, in2 * kh * kw]. The product of the
    ups times that of the downs is the same.
    """

    first: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    factor: float
    is_flat: bool

    def check(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Raises ValueError, which tells both shapes, if `layer` has another one."""
        (down1, up1), (down2, up2) = self.first, self.second
        shape = (up1.shape[0] * up2.shape[0], down1.shape[1] * down2.shape[1], *down2.shape[2:])
        check_shape(layer, shape, is_flat=self.is_flat)
        if self.is_flat and down2.shape[1] % layer.weight[0, 0].numel():
            raise ValueError("whose kernel is no factor of this LoKr")

    def update(self, layer: nn.Linear | nn.Conv2d, scale: float) -> LayerUpdate:
        """Returns the update of `layer` at `scale`."""
        (down1, up1), (down2, up2) = self.first, self.second
        down2 = down2.reshape(down2.shape[0], -1, *layer.weight.shape[2:])
        out, inside = layer.weight.shape[0], layer.weight[0].numel()
        if down1.shape[0] * down2.shape[0] <= min(out, inside):
            down, up = _kron(down1, down2), _kron(up1, up2)
        else:
            second = (up2 @ down2.flatten(1)).reshape(up2.shape[0], *down2.shape[1:])
            down, up = factors_of(_kron(up1 @ down1, second))
        return LayerUpdate(fold(down, layer), up * (self.factor * scale))

    @property
    def size(self) -> int:
        """Its bytes in memory."""
        return sum(each.nbytes for each in (*self.first, *self.second))


def _kron(matrix: Tensor, kernels: Tensor) -> Tensor:
    """Returns the Kronecker product of a matrix and of kernels, which keep their sides."""
    ones = (1 for _ in kernels.shape[2:])
    return torch.kron(matrix.reshape(*matrix.shape, *ones).contiguous(), kernels.contiguous())

"""The UNet's optimizer: Muon for weight matrices, AdamW for the rest.

`torch.optim.Muon` takes no convolutions and computes in bfloat16, which a CPU without AVX-512 emulates hundreds of
times slower than float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor, nn

_STEPS: Final = 5
_QUINTIC: Final = (3.4445, -4.7750, 2.0315)
_APART: Final = (
    "conv_in.",
    "conv_out.",
    "time_embedding.",
    "add_embedding.",
)  # ends of the network, of no inner rank to balance


def optimizers(network: nn.Module, rate: float) -> tuple[torch.optim.Optimizer, ...]:
    """Muon and AdamW at the learning rate `rate`, which suits both: Muon's updates are as large as AdamW's."""
    inner: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in network.named_parameters():
        (inner if weight.ndim >= 2 and not name.startswith(_APART) else rest).append(weight)
    return Muon(inner, rate), torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices [..., m, n] with all singular values brought near 1 (0.7 to 1.2), by five Newton-Schulz iterations."""
    a, b, c = _QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al. 2024), so that rare directions are learnt as fast as
    common ones; scaled by 0.2 sqrt(larger side), AdamW's usual size (Liu et al. 2025).

    Weights [out, in, kh, kw] of a convolution count as a matrix [out, in * kh * kw].
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient; equal shapes are orthogonalised in one batch."""
        for group in self.param_groups:
            shapes: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes[weight.flatten(1).shape].append(weight)
            for shape, weights in shapes.items():
                aims = torch.stack([self._aim(weight, group["momentum"]).flatten(1) for weight in weights])
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for weight, update in zip(weights, orthogonalise(aims), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(weight), alpha=-size)

    def _aim(self, weight: Tensor, momentum: float) -> Tensor:
        state, grad = self.state[weight], weight.grad
        assert grad is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        past: Tensor = state["momentum"].lerp_(grad, 1 - momentum)
        return grad.lerp(past, momentum)

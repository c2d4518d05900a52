"""The running average of a network's weights, which makes better pictures than the weights themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average; young averages forget faster, so that the first minutes already give pictures."""

    def __init__(self, model: nn.Module, longest: float = 0.998) -> None:
        self.longest = longest
        self.weights: dict[str, Tensor] = {name: w.detach().clone() for name, w in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """Take in the weights after iteration number `iteration`, counted from 1."""
        keep = min(self.longest, (1 + iteration) / (20 + iteration))
        for name, weight in model.state_dict().items():
            if weight.is_floating_point():
                self.weights[name].lerp_(weight, 1 - keep)
            else:  # a batch norm's counter
                self.weights[name].copy_(weight)

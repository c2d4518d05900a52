"""One training run: its optimizers, its learning rate over a budget of minutes, and the file that it goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deployments.training import checkpoint
from deployments.training.demo.learning.average import Average
from deployments.training.demo.learning.budget import Budget, cosine


class Run:
    """What every stage shares. The networks, by the names they have in the checkpoint at `path`, take up what it says;
    `averaged` is the one whose running average is kept, and `peak` the highest learning rate.
    """

    def __init__(
        self,
        path: Path,
        networks: Mapping[str, nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        peak: float,
        minutes: float,
        averaged: nn.Module | None = None,
    ) -> None:
        self.path, self.networks, self.optimizers, self.peak = path, networks, optimizers, peak
        self.averaged = averaged
        self.average = None if averaged is None else Average(averaged)
        state = checkpoint.load(path)
        self.iteration, spent = 0, 0.0
        if state:
            self._restore(state)
            self.iteration, spent = int(state["iteration"]), float(state["spent"])
        self.budget = Budget(minutes, spent)

    def going(self, iterations: int | None = None) -> Iterator[int]:
        """Iteration after iteration, until the budget is used or for so many, with the learning rates set; saves at the
        end.
        """
        last = self.iteration + iterations if iterations else None
        while self.budget.left and self.iteration != last:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = cosine(self.budget.progress, self.peak)
            yield self.iteration
        self.save()

    def descend(self, loss: Tensor) -> float:
        """One update against `loss`, with the gradient's norm held to 1; returns the loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for o in self.optimizers for g in o.param_groups for p in g["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.iteration += 1
        if self.averaged is not None and self.average is not None:
            self.average.update(self.averaged, self.iteration)
        return float(loss.item())

    def tell(self, every: int, **figures: float | int) -> None:
        """Print a line each `every` iterations."""
        if self.iteration % every == 0:
            said = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
            print(f"{self.path.stem} {self.iteration} {self.budget.spent:.0f}s {said}", flush=True)

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint.save(
            self.path,
            **{name: network.state_dict() for name, network in self.networks.items()},
            average=None if self.average is None else self.average.weights,
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            iteration=self.iteration,
            spent=self.budget.spent,
        )

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, network in self.networks.items():
            network.load_state_dict(state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.average is not None:
            for name, weight in self.average.weights.items():
                weight.copy_(state["average"][name])

"""Stage three: the UNet, at growing picture sizes. Words become shapes, colours and places at a quarter of the size,
sixteen times cheaper than at twice the native one; the larger sizes only have to learn their own scale.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from diffusers import UNet2DConditionModel
from torch import nn

from deployments.training.demo import checkpoint
from deployments.training.demo.average import Average
from deployments.training.demo.budget import Budget, cosine
from deployments.training.demo.diffusion import Noising
from deployments.training.demo.latents import Encoders, Pool
from deployments.training.demo.models import device, make_unet
from deployments.training.demo.muon import optimizers


@dataclass(frozen=True)
class Course:
    """How a run goes: its peak learning rate, and rows of (until this share of the budget, chances of the sizes)."""

    peak: float
    mix: tuple[tuple[float, tuple[float, float, float]], ...]


@dataclass(frozen=True)
class Diet:
    """What a picture size is fed: rows per batch, drawings to begin with and to add per iteration, and at most."""

    batch: int
    first: int
    added: int
    limit: int


DIETS: Final[dict[int, Diet]] = {
    128: Diet(batch=48, first=1500, added=4, limit=12000),
    256: Diet(batch=16, first=800, added=2, limit=5000),
    512: Diet(batch=4, first=60, added=1, limit=1200),
}
FRESH: Final = Course(1e-3, ((0.45, (1.0, 0.0, 0.0)), (0.72, (0.2, 0.8, 0.0)), (1.0, (0.0, 0.6, 0.4))))
# Words are known by now: what is left to learn are outlines, and those need room.
FURTHER: Final = Course(6e-4, ((0.6, (0.05, 0.7, 0.25)), (1.0, (0.05, 0.55, 0.4))))


class UnetTraining:
    """One run: everything that a checkpoint holds, and one iteration at a time."""

    def __init__(
        self,
        path: Path,
        encoders: Encoders,
        minutes: float,
        diets: dict[int, Diet] | None = None,
        course: Course = FRESH,
    ) -> None:
        self.path, self.encoders, self.diets, self.course = path, encoders, diets or DIETS, course
        self.unet: UNet2DConditionModel = make_unet().to(device())
        self.optimizers = optimizers(self.unet, course.peak)
        self.average = Average(self.unet)
        self.noising = Noising(device())
        self.pools: dict[int, Pool] = {}
        self.iteration, spent = 0, 0.0
        state = checkpoint.load(path)
        if state:
            self._restore(state)
            self.iteration, spent = int(state["iteration"]), float(state["spent"])
        self.rng = random.Random(self.iteration)
        self.budget = Budget(minutes, spent)

    def begin_from(self, unet: UNet2DConditionModel) -> None:
        """Start from finished weights, such as the shipped ones."""
        self.unet.load_state_dict(unet.state_dict())
        self.average = Average(self.unet)

    def run(self, iterations: int | None = None, each: Callable[[UnetTraining], None] | None = None) -> None:
        """Train until the budget is used, or for so many iterations; `each` is called after every save."""
        last = self.iteration + iterations if iterations else None
        while self.budget.left and self.iteration != last:
            size = self._pick_size()
            loss = self._step(size)
            if self.iteration % 20 == 0:
                print(f"unet {self.iteration} {self.budget.spent:.0f}s size {size} loss {loss:.4f}", flush=True)
            if self.iteration % 100 == 0:
                self.save()
                if each:
                    each(self)
        self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint.save(
            self.path,
            model=self.unet.state_dict(),
            average=self.average.weights,
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            iteration=self.iteration,
            spent=self.budget.spent,
        )

    def averaged(self) -> UNet2DConditionModel:
        """A UNet of the averaged weights."""
        unet = make_unet()
        unet.load_state_dict(self.average.weights)
        return unet

    def _restore(self, state: dict[str, Any]) -> None:
        self.unet.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average.weights = {name: w.to(device()) for name, w in state["average"].items()}

    def _pick_size(self) -> int:
        chances = next(chances for until, chances in self.course.mix if self.budget.progress <= until)
        wanted = self.rng.choices(list(DIETS), chances)[0]
        return wanted if wanted in self.diets else min(self.diets)

    def _pool(self, size: int) -> Pool:
        diet = self.diets[size]
        if size not in self.pools:
            self.pools[size] = Pool(self.encoders, size, diet.first, diet.limit, seed=self.iteration)
        else:
            self.pools[size].grow(diet.added)
        return self.pools[size]

    def _step(self, size: int) -> float:
        latents, words = self._pool(size).batch(self.diets[size].batch)
        noisy, noise, steps, weights = self.noising(latents)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = cosine(self.budget.progress, self.course.peak)
        guess = self.unet(noisy, steps, words).sample
        loss = ((guess - noise).square().mean(dim=(1, 2, 3)) * weights).mean()
        self.unet.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.iteration += 1
        self.average.update(self.unet, self.iteration)
        return float(loss.item())

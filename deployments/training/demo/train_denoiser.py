"""Stage three: a denoiser, at growing picture sizes. Words become shapes, colours and places at a quarter of the size,
sixteen times cheaper than at twice the native one; the larger sizes only have to learn their own scale.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

from deployments.training.demo import checkpoint
from deployments.training.demo.average import Average
from deployments.training.demo.budget import Budget, cosine
from deployments.training.demo.diffusion import HIGH_SHARE, Noising, Prediction
from deployments.training.demo.latents import Encoders, Pool
from deployments.training.demo.lessons import Teach
from deployments.training.demo.models import device
from deployments.training.demo.muon import optimizers
from deployments.training.demo.pupils import Pupil


@dataclass(frozen=True)
class Diet:
    """What a picture size is fed: rows per batch, lessons to begin with and to add per iteration, and at most."""

    batch: int
    first: int
    added: int
    limit: int


DIETS: Final[Mapping[int, Diet]] = {
    128: Diet(batch=48, first=1500, added=4, limit=12000),
    256: Diet(batch=16, first=800, added=2, limit=5000),
    512: Diet(batch=4, first=60, added=1, limit=1200),
}


@dataclass(frozen=True)
class Course:
    """How a run goes: its peak learning rate, (until this share of the budget, chances of the sizes) in rows, and the
    share of timesteps that is taken from the noisier part.
    """

    peak: float
    mix: tuple[tuple[float, tuple[float, float, float]], ...]
    teach: Teach
    prediction: Prediction = "epsilon"
    high_share: float = HIGH_SHARE


class DenoiserTraining:
    """One run: everything that a checkpoint holds, and one iteration at a time."""

    def __init__(
        self,
        path: Path,
        encoders: Encoders,
        pupil: Pupil,
        course: Course,
        minutes: float,
        diets: Mapping[int, Diet] | None = None,
    ) -> None:
        self.path, self.encoders, self.pupil, self.course = path, encoders, pupil, course
        self.diets = diets or DIETS
        self.network = pupil.network
        self.optimizers = optimizers(self.network, course.peak)
        self.average = Average(self.network)
        self.noising = Noising(device(), course.prediction, course.high_share)
        self.pools: dict[int, Pool] = {}
        self.iteration, spent = 0, 0.0
        state = checkpoint.load(path)
        if state:
            self._restore(state)
            self.iteration, spent = int(state["iteration"]), float(state["spent"])
        self.rng = random.Random(self.iteration)
        self.budget = Budget(minutes, spent)

    def run(self, iterations: int | None = None, each: Callable[[DenoiserTraining], None] | None = None) -> None:
        """Train until the budget is used, or for so many iterations; `each` is called after every save."""
        last = self.iteration + iterations if iterations else None
        while self.budget.left and self.iteration != last:
            size = self._pick_size()
            loss = self._step(size)
            if self.iteration % 20 == 0:
                spent = f"{self.budget.spent:.0f}s"
                print(f"{self.path.stem} {self.iteration} {spent} size {size} loss {loss:.4f}", flush=True)
            if self.iteration % 100 == 0:
                self.save()
                if each:
                    each(self)
        self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint.save(
            self.path,
            model=self.network.state_dict(),
            average=self.average.weights,
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            iteration=self.iteration,
            spent=self.budget.spent,
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["model"])
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
            self.pools[size] = Pool(self.encoders, self.course.teach, size, diet.first, diet.limit, seed=self.iteration)
        else:
            self.pools[size].grow(diet.added)
        return self.pools[size]

    def _step(self, size: int) -> float:
        batch = self._pool(size).batch(self.diets[size].batch)
        noisy, wanted, steps, weights = self.noising(batch.latents)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = cosine(self.budget.progress, self.course.peak)
        guess = self.pupil(noisy, steps, batch)
        loss = ((guess - wanted).square().mean(dim=(1, 2, 3)) * weights).mean()
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.iteration += 1
        self.average.update(self.network, self.iteration)
        return float(loss.item())

"""Stage three: a denoiser, at growing picture sizes. Words become shapes, colours and places at a quarter of the size,
sixteen times cheaper than at twice the native one; the larger sizes only have to learn their own scale.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from deployments.training.demo.learning.diffusion import HIGH_SHARE, Noising, Prediction
from deployments.training.demo.learning.latents import Encoders, Pool
from deployments.training.demo.learning.lessons import Teach
from deployments.training.demo.learning.muon import optimizers
from deployments.training.demo.learning.pupils import Pupil
from deployments.training.demo.learning.run import Run
from deployments.training.demo.models import device


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
        self.noising = Noising(device(), course.prediction, course.high_share)
        self.pools: dict[int, Pool] = {}
        both = optimizers(pupil.network, course.peak)
        self.run = Run(path, {"model": pupil.network}, both, course.peak, minutes, averaged=pupil.network)
        self.rng = random.Random(self.run.iteration)

    def train(self, iterations: int | None = None) -> dict[str, Tensor]:
        """Train until the budget is used, or for so many iterations; the averaged weights."""
        for _ in self.run.going(iterations):
            size = self._pick_size()
            self.run.tell(20, size=size, loss=self.run.descend(self._lost(size)))
            if self.run.iteration % 100 == 0:
                self.run.save()
        assert self.run.average is not None
        return self.run.average.weights

    def _pick_size(self) -> int:
        chances = next(chances for until, chances in self.course.mix if self.run.budget.progress <= until)
        wanted = self.rng.choices(list(DIETS), chances)[0]
        return wanted if wanted in self.diets else min(self.diets)

    def _pool(self, size: int) -> Pool:
        diet = self.diets[size]
        if size not in self.pools:
            seed = self.run.iteration
            self.pools[size] = Pool(self.encoders, self.course.teach, size, diet.first, diet.limit, seed)
        else:
            self.pools[size].grow(diet.added)
        return self.pools[size]

    def _lost(self, size: int) -> Tensor:
        batch = self._pool(size).batch(self.diets[size].batch)
        noisy, wanted, steps, weights = self.noising(batch.latents)
        guess = self.pupil(noisy, steps, batch)
        loss: Tensor = ((guess - wanted).square().mean(dim=(1, 2, 3)) * weights).mean()
        return loss

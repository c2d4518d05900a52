"""Trains a LoRA: step after step, until all are done, nothing improves, or time is up; checkpoints on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deployments.engine.protocol.errors import Cancelled, InvalidParameter, NumericalFailure
from deployments.training import checkpoint
from deployments.training.lora.adapter_layers import load_lora_weights, lora_weights, without_lora
from deployments.training.lora.lessons import EncodedPictures, Lessons
from deployments.training.lora.objective import NoisedRows, TrainingNoise, generator_of
from deployments.training.lora.run_folder import LossPoint, RunFolder
from deployments.training.lora.settings import TrainingSettings

_STEP: Final = 2
_VALIDATION: Final = 3
_VALIDATION_STEPS: Final = 4
"""Timesteps at which each picture that is kept out is measured, evenly spread."""
_SMOOTHING: Final = 0.95
_TOLD_EVERY_S: Final = 1.0


@dataclass(slots=True)
class _Course:
    """What a checkpoint holds besides weights."""

    step: int = 0
    seconds: float = 0.0
    loss: float | None = None
    best_loss: float = math.inf
    best_step: int = 0
    validation_loss: float | None = None


class LoraTrainer:
    """Trains the LoRA that is in `unet`, whose weights are `weights`.

    What it does and measures is written to `run`. `sample` is called with the step whenever sample pictures are due.
    """

    def __init__(
        self,
        unet: Any,
        weights: list[nn.Parameter],
        lessons: Lessons,
        noising: TrainingNoise,
        settings: TrainingSettings,
        accelerator: Accelerator,
        run: RunFolder,
        sample: Callable[[int], None],
    ) -> None:
        """Raises InvalidParameter for an early stop with nothing to measure."""
        if settings.patience and not len(lessons.kept_out):
            raise InvalidParameter("patience", "needs a `validation_share` of at least one picture")
        self._plain, self._lessons, self._noising, self._settings = unet, lessons, noising, settings
        self._accelerator, self._run, self._sample = accelerator, run, sample
        optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=1e-2)
        self._weights = weights
        self._unet, self._optimizer = accelerator.prepare(unet, optimizer)
        self._course = _Course()
        self._best: dict[str, Tensor] | None = None
        self._restore()
        self._began = time.monotonic() - self._course.seconds
        self._told = -math.inf

    def train(self, max_minutes: float) -> str:
        """Trains to the end, leaves the best weights in the UNet, and returns why it ended.

        Raises Cancelled if that is asked for, NumericalFailure if the loss is no number; a checkpoint is left.
        """
        settings, course = self._settings, self._course
        ended = "all steps are done"
        while course.step < settings.steps:
            if self._run.is_cancelled:
                self.save()
                raise Cancelled("the training was cancelled")
            if self._seconds > 60 * max_minutes:
                ended = f"the {max_minutes:g} minutes are over"
                break
            self._do_step()
            if settings.patience and course.step - course.best_step >= settings.patience * settings.validate_every:
                ended = f"nothing has improved since step {course.best_step}"
                break
        self.save()
        if settings.patience and self._best is not None:
            load_lora_weights(self._plain, self._best)
        return ended

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _do_step(self) -> None:
        settings, course = self._settings, self._course
        loss, prior = self._descend()
        course.step += 1
        if not math.isfinite(loss):
            raise NumericalFailure(f"the loss is no number at step {course.step}; a lower `learning_rate` may help")
        course.loss = loss if course.loss is None else _SMOOTHING * course.loss + (1 - _SMOOTHING) * loss
        measured = self._measure() if self._is_due(settings.validate_every) else None
        self._run.append_loss(LossPoint(course.step, loss, prior, measured))
        if self._is_due(settings.sample_every):
            self._sample(course.step)
        if self._is_due(settings.checkpoint_every):
            self.save()
        self._tell()

    def _is_due(self, every: int) -> bool:
        return self._course.step % every == 0 or self._course.step == self._settings.steps

    def _descend(self) -> tuple[float, float | None]:
        """One update; returns the loss of the pictures, and of what is to stay."""
        settings = self._settings
        lessons, rows = self._lessons.whole, 1
        if self._lessons.half is not None and self._course.step < settings.half_size_share * settings.steps:
            lessons, rows = self._lessons.half, 2
        generator = generator_of(settings.seed, _STEP, self._course.step)
        learnt = _draw(lessons.learnt, rows * settings.batch_size, generator)
        noised = self._noising.draw(learnt.latents, generator)
        if len(lessons.stay):
            stay = _draw(lessons.stay, rows * settings.prior_batch_size, generator)
            kept = self._noising.draw(stay.latents, generator)
            before = self._answer_without(kept, stay.words)
            guess = self._answer(_join(noised, kept), torch.cat([learnt.words, stay.words]))
            mine, theirs = guess.split([len(learnt), len(stay)])
            loss, prior = noised.loss(mine).mean(), kept.loss(theirs, before).mean()
            told, total = float(prior.detach()), loss + settings.prior_weight * prior
        else:
            loss = total = noised.loss(self._answer(noised, learnt.words)).mean()
            told = None
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(settings, self._course.step)
        self._optimizer.zero_grad(set_to_none=True)
        self._accelerator.backward(total)
        self._accelerator.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        return float(loss.detach()), told

    def _answer(self, rows: NoisedRows, words: Tensor) -> Tensor:
        with self._accelerator.autocast():
            guess: Tensor = self._unet(rows.noisy, rows.steps, words).sample
        return guess

    @torch.no_grad()
    def _answer_without(self, rows: NoisedRows, words: Tensor) -> Tensor:
        with without_lora(self._plain), self._accelerator.autocast():
            guess: Tensor = self._plain(rows.noisy, rows.steps, words).sample
        return guess

    @torch.no_grad()
    def _measure(self) -> float | None:
        """Returns the loss of the pictures that are kept out, always with the same noise; None if there are none."""
        out, course = self._lessons.kept_out, self._course
        if not len(out):
            return None
        last = len(self._noising.signal)
        losses = []
        for number in range(_VALIDATION_STEPS):
            steps = torch.full((len(out),), int(last * (number + 0.5) / _VALIDATION_STEPS))
            rows = self._noising.noise(out.latents, steps, generator_of(self._settings.seed, _VALIDATION, number))
            losses.append(rows.loss(self._answer(rows, out.words)).mean())
        course.validation_loss = float(torch.stack(losses).mean())
        if course.validation_loss < course.best_loss:
            course.best_loss, course.best_step = course.validation_loss, course.step
            self._best = lora_weights(self._plain) if self._settings.patience else None
        return course.validation_loss

    def save(self) -> None:
        """Writes a checkpoint."""
        self._course.seconds = self._seconds
        checkpoint.save(
            self._run.checkpoint,
            digest=self._lessons.digest,
            weights=lora_weights(self._plain),
            best=self._best,
            optimizer=self._optimizer.state_dict(),
            course={name: getattr(self._course, name) for name in _Course.__slots__},
        )
        self._tell(at_once=True)

    def _restore(self) -> None:
        state = checkpoint.load(self._run.checkpoint)
        if state is not None:
            if state["digest"] != self._lessons.digest:
                raise InvalidParameter("pictures", "are not those that the training in this folder began with")
            self._course = _Course(**state["course"])
            self._best = state["best"]
            load_lora_weights(self._plain, state["weights"])
            self._optimizer.load_state_dict(state["optimizer"])
        self._run.cut_losses(self._course.step)

    def _tell(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._told > _TOLD_EVERY_S:
            course = self._course
            self._told = time.monotonic()
            self._run.change_progress(
                state="running",
                stage="training",
                step=course.step,
                steps=self._settings.steps,
                loss=course.loss,
                validation_loss=course.validation_loss,
                seconds=round(self._seconds, 1),
            )


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Returns the learning rate of a step, counted from 0: a linear warm-up, then constant, or half a cosine to 0."""
    warmed = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    if settings.lr_schedule == "constant":
        return settings.learning_rate * warmed
    return settings.learning_rate * warmed * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def _draw(pictures: EncodedPictures, count: int, generator: torch.Generator) -> EncodedPictures:
    return pictures.pick(torch.randint(len(pictures), (count,), generator=generator))


def _join(one: NoisedRows, other: NoisedRows) -> NoisedRows:
    return NoisedRows(
        torch.cat([one.noisy, other.noisy]),
        torch.cat([one.steps, other.steps]),
        torch.cat([one.wanted, other.wanted]),
        torch.cat([one.weights, other.weights]),
    )

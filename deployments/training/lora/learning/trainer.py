"""Trains a LoRA: step after step, until all are done, nothing improves, or time is up; checkpoints on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from deployments.engine.conditioning.added_conditions import added_conditions, sizes_of
from deployments.engine.protocol.errors import Cancelled, InvalidParameter, NumericalFailure
from deployments.training import checkpoint
from deployments.training.lora.clock import TrainingClock
from deployments.training.lora.generators import generator_of
from deployments.training.lora.learning.adapter_layers import load_lora_weights, lora_weights, without_lora
from deployments.training.lora.learning.objective import NoisedRows, TrainingNoise, join
from deployments.training.lora.learning.processes import TrainingProcesses
from deployments.training.lora.lessons import EncodedPictures, Lessons
from deployments.training.lora.run_folder import LossPoint, RunFolder
from deployments.training.lora.settings import TrainingSettings

_STEP: Final = 2
_VALIDATION: Final = 3
_VALIDATION_STEPS: Final = 4
"""Timesteps at which each picture that is kept out is measured, evenly spread."""
_SMOOTHING: Final = 0.95
_TOLD_EVERY_S: Final = 1.0
_ADVICE: Final = "a lower `learning_rate` may help"


@dataclass(slots=True)
class _Course:
    """What a checkpoint holds besides weights."""

    step: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    best_step: int = 0
    best_loss: float = math.inf
    loss_at_best: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingEnd:
    """Why a training has ended, and the weights that it leaves: those after `step`, with the mean `loss` until there,
    and that of the pictures that are kept out.
    """

    why: str
    step: int
    loss: float | None
    validation_loss: float | None


class LoraTrainer:
    """Trains the LoRA that is in `unet`, whose weights are `weights`, together with the other `processes`.

    What it does and measures is written to `run`. `clock` says when it is to end. `sample` is called with the step
    whenever sample pictures are due. All three are used by the first process alone, but for reading the checkpoint.
    """

    def __init__(
        self,
        unet: Any,
        weights: list[nn.Parameter],
        lessons: Lessons,
        noising: TrainingNoise,
        settings: TrainingSettings,
        processes: TrainingProcesses,
        run: RunFolder,
        clock: TrainingClock,
        sample: Callable[[int], None],
    ) -> None:
        """Raises InvalidParameter for an early stop with nothing to measure, and a checkpoint of something else."""
        if settings.patience and not len(lessons.kept_out):
            raise InvalidParameter("patience", "needs a `validation_share` of at least one picture")
        self._unet, self._weights, self._lessons = unet, weights, lessons
        self._noising, self._settings = noising, settings
        self._processes, self._run, self._clock, self._sample = processes, run, clock, sample
        self._accelerator = processes.accelerator
        # The UNet is not prepared: it would answer in float32 from then on, also where it makes pictures with a VAE
        # that takes none. Mixed precision is `_answer`'s.
        optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=1e-2)
        self._optimizer = self._accelerator.prepare(optimizer)
        self._course = _Course()
        self._best: dict[str, Tensor] | None = None
        self._restore()
        self._told = -math.inf

    def train(self) -> TrainingEnd:
        """Trains to the end, and leaves the best weights in the UNet, in every process the same.

        Raises Cancelled if that is asked for, NumericalFailure if a loss is no number, and InvalidParameter if there is
        no time for one step; the last good checkpoint is left.
        """
        course = self._course
        try:
            while (why := self._processes.agree(self._find_end)) is None:
                self._do_step()
        except Cancelled:
            self.save()
            raise
        self.save()
        if self._settings.patience and self._best is not None:
            load_lora_weights(self._unet, self._best)
            return TrainingEnd(why, course.best_step, course.loss_at_best, course.best_loss)
        return TrainingEnd(why, course.step, course.loss, course.validation_loss)

    def _find_end(self) -> str | None:
        """Returns why there is to be no further step; None if there is. Raises Cancelled."""
        settings, course = self._settings, self._course
        if course.step:
            self._clock.check()
        else:
            self._clock.check_preparation()
        if settings.patience and course.step - course.best_step >= settings.patience * settings.validate_every:
            return f"nothing has improved since step {course.best_step}"
        if course.step >= settings.steps:
            return "all steps are done"
        return f"the {self._clock.minutes:g} minutes are over" if self._clock.is_over else None

    def _do_step(self) -> None:
        settings, course = self._settings, self._course
        loss, prior = self._descend()
        course.step += 1
        course.loss = loss if course.loss is None else _SMOOTHING * course.loss + (1 - _SMOOTHING) * loss
        measured = self._measure() if self._is_due(settings.validate_every) else None
        if self._processes.is_first:
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
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._settings, self._course.step)
        self._optimizer.zero_grad(set_to_none=True)
        own = self._find_losses()
        total = own[0] + self._settings.prior_weight * own[1]
        if total.requires_grad:
            self._accelerator.backward(total)
        loss, prior = self._processes.add_gradients(self._weights, own.detach()).tolist()
        norm = self._accelerator.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._check_finite(loss, "loss")
        if self._accelerator.scaler is None:
            # With a scaler (float16) such a step is left out, and the next ones are scaled less.
            self._check_finite(float(norm), "gradient")
        self._check_finite(prior, "loss of what is to stay")
        return loss, prior if len(self._lessons.whole.stay) else None

    def _find_losses(self) -> Tensor:
        """Returns this process' part [2] of the step's mean losses: of the pictures, and of what is to stay."""
        settings, lessons, times = self._settings, self._lessons.whole, 1
        if self._lessons.half is not None and self._course.step < settings.half_size_share * settings.steps:
            lessons, times = self._lessons.half, 2
        generator = generator_of(settings.seed, _STEP, self._course.step)
        learnt = self._draw(lessons.learnt, times * settings.batch_size, generator)
        own, counts = [learnt.pick(self._processes.share(len(learnt)))], [len(learnt)]
        if len(lessons.stay):
            stay = self._draw(lessons.stay, times * settings.prior_batch_size, generator)
            kept = stay.pick(self._processes.share(len(stay), from_end=True))
            own.append(replace(kept, wanted=self._answer_without(kept)) if len(kept) else kept)
            counts.append(len(stay))
        asked = join(own)
        if not len(asked):
            # So few rows for so many processes. Zero, but with gradients, which a scaler wants to have seen.
            nothing = torch.zeros(2, device=self._weights[0].device)
            return nothing * torch.stack([weight.sum() for weight in self._weights]).sum()
        losses = asked.loss(self._answer(asked)).split([len(rows) for rows in own])
        parts = [loss.sum() / count for loss, count in zip(losses, counts, strict=True)]
        return torch.stack(parts if len(parts) == 2 else [*parts, torch.zeros_like(parts[0])])

    def _draw(self, pictures: EncodedPictures, count: int, generator: torch.Generator) -> NoisedRows:
        """Returns all processes' rows."""
        drawn = pictures.pick(torch.randint(len(pictures), (count,), generator=generator))
        return self._noising.draw(drawn, generator)

    def _answer(self, rows: NoisedRows) -> Tensor:
        added: dict[str, Any] = {}
        if rows.pooled.shape[1]:
            height, width = (self._lessons.factor * side for side in rows.noisy.shape[-2:])
            # As an image of that size is asked for where it is served, whatever the picture was cut from.
            added = added_conditions(rows.pooled, sizes_of(height, width).to(rows.pooled).expand(len(rows), -1))
        with self._accelerator.autocast():
            guess: Tensor = self._unet(rows.noisy, rows.steps, rows.words, **added).sample
        return guess

    @torch.no_grad()
    def _answer_without(self, rows: NoisedRows) -> Tensor:
        with without_lora(self._unet):
            return self._answer(rows)

    def _measure(self) -> float | None:
        """Returns the loss of the pictures that are kept out; None if there are none. Keeps the best weights."""
        course = self._course
        if not len(self._lessons.kept_out):
            return None
        found = self._check_finite(self._find_validation_loss(), "loss of pictures that are kept out")
        course.validation_loss = found
        if found < course.best_loss:
            course.best_loss, course.best_step, course.loss_at_best = found, course.step, course.loss
            self._best = lora_weights(self._unet) if self._settings.patience else None
        return found

    @torch.no_grad()
    def _find_validation_loss(self) -> float:
        """Measures the pictures that are kept out, always with the same noise, a batch at a time."""
        out, last = self._lessons.kept_out, len(self._noising.signal)
        losses = [torch.zeros(1, device=out.latents.device)]
        for number in range(_VALIDATION_STEPS):
            generator = generator_of(self._settings.seed, _VALIDATION, number)
            for chunk in torch.arange(len(out)).split(self._settings.batch_size):
                some = out.pick(chunk)
                steps = torch.full((len(some),), int(last * (number + 0.5) / _VALIDATION_STEPS))
                rows = self._noising.noise(some, steps, generator)
                rows = rows.pick(self._processes.share(len(rows)))
                if len(rows):
                    losses.append(rows.loss(self._answer(rows)))
        return float(self._processes.add_up(torch.cat(losses).sum())) / (_VALIDATION_STEPS * len(out))

    def _check_finite(self, number: float, what: str) -> float:
        if not math.isfinite(number):
            raise NumericalFailure(f"the {what} is no number after {self._course.step} steps; {_ADVICE}")
        return number

    def save(self) -> None:
        """Writes a checkpoint, in the first process."""
        if not self._processes.is_first:
            return
        scaler = self._accelerator.scaler
        checkpoint.save(
            self._run.checkpoint,
            base=self._lessons.base,
            digest=self._lessons.digest,
            weights=lora_weights(self._unet),
            best=self._best,
            optimizer=self._optimizer.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            course={name: getattr(self._course, name) for name in _Course.__slots__},
        )
        self._tell(at_once=True)

    def _restore(self) -> None:
        state = checkpoint.load(self._run.checkpoint)
        if state is not None:
            check_checkpoint(state, self._lessons.base, self._lessons.digest)
            self._course = _Course(**state["course"])
            self._best = state["best"]
            load_lora_weights(self._unet, state["weights"])
            self._optimizer.load_state_dict(state["optimizer"])
            if self._accelerator.scaler is not None and state["scaler"] is not None:
                self._accelerator.scaler.load_state_dict(state["scaler"])
        if self._processes.is_first:
            self._run.cut_losses(self._course.step)

    def _tell(self, *, at_once: bool = False) -> None:
        if self._processes.is_first and (at_once or time.monotonic() - self._told > _TOLD_EVERY_S):
            course = self._course
            self._told = time.monotonic()
            self._run.change_progress(
                state="running",
                stage="training",
                step=course.step,
                steps=self._settings.steps,
                loss=course.loss,
                validation_loss=course.validation_loss,
                seconds=round(self._clock.seconds, 1),
            )


def check_checkpoint(state: Mapping[str, Any] | None, base: str, digest: str) -> None:
    """Raises InvalidParameter if a checkpoint is of other networks than `base`, or other pictures than `digest`."""
    if state is not None and state.get("base") != base:
        raise InvalidParameter("model_name", "has other files than those that the training in this folder began with")
    if state is not None and state["digest"] != digest:
        raise InvalidParameter("pictures", "are not those that the training in this folder began with")


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Returns the learning rate of a step, counted from 0: a linear warm-up, then constant, or half a cosine to 0."""
    warmed = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    if settings.lr_schedule == "constant":
        return settings.learning_rate * warmed
    return settings.learning_rate * warmed * 0.5 * (1 + math.cos(math.pi * step / settings.steps))

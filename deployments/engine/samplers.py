"""Sampler tables for one model: names in, compiled `Schedule`s out. diffusers' own classes define what is right.

The rows are in `sampler_names.py`, without torch; how a table is made is in `schedule_compiler.py`.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Self

import diffusers
import torch
from torch import Tensor

from deployments.engine.errors import InvalidParameter
from deployments.engine.sampler_names import SAMPLERS, Sampler, SamplerNotLinear, resolve_sampler
from deployments.engine.schedule_compiler import (
    OUT_TERMS,
    X_TERMS,
    Schedule,
    Scheduler,
    begin,
    compile_schedule,
    step_arguments,
)

__all__ = [
    "OUT_TERMS",
    "SAMPLERS",
    "X_TERMS",
    "DiffusionSchedulerFactory",
    "Sampler",
    "SamplerNotLinear",
    "Schedule",
    "resolve_sampler",
]

CACHED_SCHEDULES = 512

# Of the largest latent. Rounding in float32 gives a hundredth of this; half a grey level of a picture is about 0.002.
AGREEMENT = 1e-4

_CLASSES: Mapping[str, Any] = MappingProxyType(
    {
        scheduler.__name__: scheduler
        for scheduler in (
            diffusers.DDIMScheduler,
            diffusers.DDPMScheduler,
            diffusers.DEISMultistepScheduler,
            diffusers.DPMSolverMultistepScheduler,
            diffusers.DPMSolverSinglestepScheduler,
            diffusers.EulerAncestralDiscreteScheduler,
            diffusers.EulerDiscreteScheduler,
            diffusers.HeunDiscreteScheduler,
            diffusers.KDPM2AncestralDiscreteScheduler,
            diffusers.KDPM2DiscreteScheduler,
            diffusers.LCMScheduler,
            diffusers.LMSDiscreteScheduler,
            diffusers.PNDMScheduler,
            diffusers.UniPCMultistepScheduler,
        )
    }
)

# A checkpoint's config describes the model, but carries its author's favourite sampler along. The row decides these.
_ROW_DECIDES = frozenset(
    (
        "algorithm_type",
        "solver_order",
        "solver_type",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
    )
)


class DiffusionSchedulerFactory:
    """Makes the schedules of one model from its diffusers scheduler config (`scheduler/scheduler_config.json`).

    The config's entries are diffusers' own: `num_train_timesteps`, `beta_start`, `beta_schedule`, `prediction_type`,
    `timestep_spacing`, ... Schedules are kept, the least recently used are dropped first.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        silent = {*config.get("_use_default_values", ()), "_use_default_values"} | _ROW_DECIDES
        stated = {key: value for key, value in config.items() if key not in silent}
        # Latents are not pixels: where a config is silent, diffusers' pipelines do not clip them either.
        self._config: Mapping[str, Any] = MappingProxyType({"clip_sample": False, **stated})
        self._pristine = lru_cache(maxsize=None)(self._construct)
        self._compiled = lru_cache(maxsize=CACHED_SCHEDULES)(self._compile)

    @classmethod
    def from_pretrained(cls, source: str, **where: Any) -> Self:
        """The factory for a model in diffusers' layout; `where` goes to diffusers, for example `revision`.

        Raises OSError when there is no scheduler config.
        """
        return cls(diffusers.DDIMScheduler.load_config(source, subfolder="scheduler", **where))

    @property
    def alphas_cumprod(self) -> Tensor:
        """The training schedule's signal power, [num_train_timesteps] fp32 (Ho et al., 2020)."""
        alphas: Tensor = self.scheduler("ddim").alphas_cumprod
        return alphas

    @property
    def prediction_type(self) -> str:
        """What the model's output means: `epsilon` or `v_prediction`."""
        return str(self.scheduler("ddim").config.prediction_type)

    def scheduler(self, sampler: str) -> Scheduler:
        """A new diffusers scheduler for `sampler` (any of its names), as a user of diffusers would make it."""
        return deepcopy(self._pristine(resolve_sampler(sampler)))

    def schedule(self, sampler: str, num_inference_steps: int, start: int = 0) -> Schedule:
        """The table for `sampler` (any of its names); equal arguments give the same object.

        `start` is the index of the first evaluation, 0 for text-to-image, `Sampler.start` for image-to-image.
        Raises InvalidParameter for a step count that the sampler cannot do and a `start` that leaves nothing to do, and
        SamplerNotLinear where the model's config makes a table impossible.
        """
        return self._compiled(resolve_sampler(sampler), num_inference_steps, start)

    @cached_property
    def refused(self) -> Mapping[str, SamplerNotLinear]:
        """Of all samplers, those that `check` refuses, and why; looked into once."""
        return MappingProxyType(self.check())

    def check(self, samplers: Iterable[str] = SAMPLERS) -> dict[str, SamplerNotLinear]:
        """Compares tables with diffusers, by the images of a made-up model: canonical name -> why it is refused.

        Meant for start-up; a model whose samplers are all sound gets an empty answer, in about a second.
        """
        refused: dict[str, SamplerNotLinear] = {}
        for name in map(resolve_sampler, samplers):
            try:
                for num_inference_steps in (5, 8):
                    self._compare(name, num_inference_steps)
            except SamplerNotLinear as error:
                refused[name] = error
        return refused

    def _compare(self, sampler: str, num_inference_steps: int) -> None:
        latents = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
        schedule = self.schedule(sampler, num_inference_steps)
        ours = _run_table(schedule, latents, torch.Generator().manual_seed(1))
        scheduler = self.scheduler(sampler)
        scheduler.set_timesteps(num_inference_steps)
        theirs = _run_diffusers(scheduler, latents, torch.Generator().manual_seed(1))
        error = (ours - theirs).abs().max() / theirs.abs().max()
        if not error <= AGREEMENT:
            raise SamplerNotLinear("sampler", f"{sampler} does not reproduce diffusers with this model ({error:.1e})")

    def _construct(self, sampler: str) -> Scheduler:
        # Some of the classes take a quarter of a second to construct, all are quick to copy.
        row = SAMPLERS[sampler]
        return _CLASSES[row.scheduler].from_config(dict(self._config), **row.settings)

    def _compile(self, sampler: str, num_inference_steps: int, start: int) -> Schedule:
        row = SAMPLERS[sampler]
        try:
            scheduler = self.scheduler(sampler)
            self._check_steps(row, scheduler, num_inference_steps, start)
            scheduler.set_timesteps(num_inference_steps)
            return compile_schedule(sampler, scheduler, num_inference_steps, start)
        except (ValueError, NotImplementedError) as error:  # diffusers' answer to settings that it cannot combine
            raise SamplerNotLinear("sampler", f"{sampler} does not work with this model's scheduler config") from error

    @staticmethod
    def _check_steps(row: Sampler, scheduler: Scheduler, num_inference_steps: int, start: int) -> None:
        limit = scheduler.config[row.steps_limited_by or "num_train_timesteps"]
        if not 1 <= num_inference_steps <= limit:
            raise InvalidParameter("num_inference_steps", f"must be between 1 and {limit} for {row.name}")
        if start % row.order or not 0 <= start < row.order * num_inference_steps:
            raise InvalidParameter("strength", f"leaves {row.name} nothing to do at {num_inference_steps} steps")


def _run_table(schedule: Schedule, noise: Tensor, generator: torch.Generator) -> Tensor:
    """A whole text-to-image run of a made-up model on one row: `noise` [1, C, h, w] in, latents out.

    The plainest reading of a schedule; `latents.py` does the same for many rows at once.
    """
    y = x = schedule.init_noise_sigma * noise
    inputs, outputs = [torch.zeros_like(x)] * X_TERMS, [torch.zeros_like(x)] * OUT_TERMS
    for i, coefficients in enumerate(schedule.coefficients):
        inputs = [x, *inputs[:-1]]
        outputs = [_made_up_model(schedule.input_scale[i] * x), *outputs[:-1]]
        draw = torch.randn(x.shape, generator=generator) if schedule.draws[i] else torch.zeros_like(x)
        terms = torch.stack([*inputs, *outputs, y, draw], -1)
        y = x = terms @ coefficients
    return x


def _run_diffusers(scheduler: Scheduler, noise: Tensor, generator: torch.Generator) -> Tensor:
    """What `_run_table` does, done by diffusers."""
    begin(scheduler, 0)
    arguments = step_arguments(scheduler, generator)
    x: Tensor = scheduler.init_noise_sigma * noise
    for t in scheduler.timesteps:
        out = _made_up_model(scheduler.scale_model_input(x, t))
        x = scheduler.step(out, t, x, **arguments, return_dict=False)[0]
    return x


def _made_up_model(latents: Tensor) -> Tensor:
    """Not linear, so that errors of the sampler are not hidden by chance."""
    return torch.tanh(latents + 0.1)

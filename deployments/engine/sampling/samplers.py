"""Makes sampler tables for one model: names in, compiled `Schedule`s out. diffusers' own classes are the reference.

The rows are in `sampler_names.py`, without torch; `schedule_compiler.py` makes the tables.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property, lru_cache
from threading import Lock
from types import MappingProxyType
from typing import Any, Final

import diffusers
from torch import Tensor

from deployments.engine.calibration.kept_files import NOTHING_KEPT, KeptFiles
from deployments.engine.device.errors import raise_if_sticky
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import PipelineKind
from deployments.engine.protocol.sampler_names import (
    CHECKPOINT,
    SAMPLERS,
    Sampler,
    SamplerNotLinear,
    own_sampler,
    resolve_sampler,
)
from deployments.engine.sampling.checkpoint_scheduler import CONFIG, SavedScheduler, find_corrections
from deployments.engine.sampling.sampler_check import compare
from deployments.engine.sampling.schedule_compiler import OUT_TERMS, X_TERMS, Schedule, Scheduler, compile_schedule
from deployments.engine.sampling.verdicts import SamplerVerdicts

__all__ = [
    "CHECKPOINT",
    "OUT_TERMS",
    "SAMPLERS",
    "X_TERMS",
    "DiffusionSchedulerFactory",
    "PipelineSamplers",
    "Sampler",
    "SamplerNotLinear",
    "Schedule",
    "resolve_sampler",
]

CACHED_SCHEDULES = 512

# The numbers of steps that samplers are checked with.
_CHECKED_STEPS: Final = (5, 8)

# For a scheduler whose config has no limit: diffusers' usual number of training steps.
_MOST_STEPS: Final = 1000

# A checkpoint's config describes the model, but its author's sampler too. These settings are the row's alone.
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

# Settings that can make a scheduler nonlinear, and the values with which they do not.
_HARMLESS: Mapping[str, Any] = MappingProxyType(
    {
        "thresholding": False,
        "clip_sample": False,
        "clip_denoised": False,
        "skip_prk_steps": True,
        "prediction_type": "epsilon",
    }
)


class PipelineSamplers:
    """The samplers of one checkpoint in every kind of pipeline; kinds that correct the same settings share them.

    `corrects` says that its pipelines do so: Stable Diffusion XL's take every scheduler as it is. `kept` remembers
    their checks from one start to the next. Safe from any thread.
    """

    def __init__(self, saved: SavedScheduler, kept: KeptFiles = NOTHING_KEPT, *, corrects: bool = True) -> None:
        self._saved, self._kept, self._corrects = saved, kept, corrects
        self._lock = Lock()
        self._made: dict[frozenset[tuple[str, Any]], DiffusionSchedulerFactory] = {}
        self._scheduler: Scheduler | None = None
        self._settings: Mapping[str, Any] = saved.config
        try:
            self._scheduler = saved.load()
            self._settings = self._scheduler.config
        except SamplerNotLinear:
            pass  # The checkpoint's own sampler is refused by its factories; others may do.

    def of(self, pipeline: PipelineKind) -> "DiffusionSchedulerFactory":
        """Returns the samplers as they are in a pipeline of that kind."""
        changes = find_corrections(self._settings, pipeline) if self._corrects else {}
        key = frozenset(changes.items())
        with self._lock:
            if key not in self._made:
                self._made[key] = DiffusionSchedulerFactory(
                    self._saved.config, self._saved.class_name, changes, self._kept
                )
            return self._made[key]

    def by_factory(
        self, pipelines: Iterable[PipelineKind]
    ) -> list[tuple["DiffusionSchedulerFactory", list[PipelineKind]]]:
        """Returns each different factory, with those `pipelines` that use it."""
        kinds: dict[DiffusionSchedulerFactory, list[PipelineKind]] = {}
        for pipeline in pipelines:
            kinds.setdefault(self.of(pipeline), []).append(pipeline)
        return list(kinds.items())

    def save_verdicts(self) -> None:
        """Keeps what has been found out about samplers for the next start."""
        with self._lock:
            factories = list(self._made.values())
        for factory in factories:
            factory.save_verdicts()

    @property
    def alphas_cumprod(self) -> Tensor | None:
        """The training schedule's signal power, [num_train_timesteps] fp32 (Ho et al., 2020); None if it has none."""
        alphas: Tensor | None = getattr(self._scheduler, "alphas_cumprod", None)
        return alphas

    @property
    def prediction_type(self) -> str:
        """The meaning of the model's output: `epsilon`, `v_prediction` or `sample`."""
        return str(self._settings.get("prediction_type", "epsilon"))


class DiffusionSchedulerFactory:
    """Makes the schedules of one model from its diffusers scheduler config (`scheduler/scheduler_config.json`).

    The config's entries are diffusers' own: `num_train_timesteps`, `beta_start`, `beta_schedule`, `prediction_type`,
    `timestep_spacing`, ... `class_name` is the class that the checkpoint names, by default the config's
    `_class_name`; `corrected` are the entries that the pipeline corrects once the scheduler is loaded. Schedules are
    cached; the least recently used are evicted first. `kept` remembers checks from one start to the next.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        class_name: str | None = None,
        corrected: Mapping[str, Any] | None = None,
        kept: KeptFiles = NOTHING_KEPT,
    ) -> None:
        self._saved = SavedScheduler(str(config.get("_class_name", "")) if class_name is None else class_name, config)
        self.corrected: Mapping[str, Any] = MappingProxyType(dict(corrected or {}))
        self._own: Scheduler | None = None
        self._own_error: SamplerNotLinear | None = None
        self._config: Mapping[str, Any] = {**config, **self.corrected}
        try:
            self._own = self._saved.load()
            self._own.register_to_config(**self.corrected)
            self._config = self._own.config
        except SamplerNotLinear as error:
            self._own_error = error
        self._pristine = lru_cache(maxsize=None)(self._construct)
        self._compiled = lru_cache(maxsize=CACHED_SCHEDULES)(self._compile)
        described = {"class": self._saved.class_name, "config": dict(config), "corrected": dict(self.corrected)}
        self._verdicts = SamplerVerdicts(described, kept)

    @cached_property
    def own(self) -> Sampler:
        """The row of the checkpoint's own sampler."""
        if self._own is None:
            return own_sampler(self._saved.class_name, order=1, steps_limited_by=None)
        takes = inspect.signature(type(self._own).__init__).parameters
        limit = "original_inference_steps" if "original_inference_steps" in takes else None
        return own_sampler(self._saved.class_name, int(self._own.order), limit)

    def row(self, sampler: str) -> Sampler:
        """Returns the row of `sampler` (any of its names)."""
        name = resolve_sampler(sampler)
        return self.own if name == CHECKPOINT else SAMPLERS[name]

    def scheduler(self, sampler: str) -> Scheduler:
        """Returns a new diffusers scheduler for `sampler` (any of its names), as a user of diffusers would make it.

        Raises SamplerNotLinear if diffusers cannot make it with this config.
        """
        return deepcopy(self._pristine(resolve_sampler(sampler)))

    def schedule(self, sampler: str, num_inference_steps: int, start: int | None = None) -> Schedule:
        """Returns the table for `sampler` (any of its names); equal arguments give the same object.

        `start` is the index of the first evaluation, `Sampler.start`, if there is an image; None for text-to-image.
        Raises InvalidParameter for a step count that the sampler cannot do and a `start` that leaves nothing to do, and
        SamplerNotLinear if the model's config makes a table impossible.
        """
        return self._compiled(resolve_sampler(sampler), num_inference_steps, start)

    def can_start_from_image(self, sampler: str) -> bool:
        """Returns True if the sampler can start from, or keep, an image: its scheduler must be able to add noise to
        one.
        """
        return hasattr(self._pristine(resolve_sampler(sampler)), "add_noise")

    def refusal(self, sampler: str) -> SamplerNotLinear | None:
        """Returns why `sampler` (any of its names) cannot be served with this model; None if it can. Checked once."""
        name = resolve_sampler(sampler)
        return self._verdicts.of(name, lambda: self._find_refusal(name))

    def is_checked(self, sampler: str) -> bool:
        """Returns True if `refusal` would answer at once, for any of the sampler's names."""
        return self._verdicts.is_known(resolve_sampler(sampler))

    def save_verdicts(self) -> None:
        """Keeps the verdicts for the next start."""
        self._verdicts.save()

    @property
    def refused(self) -> Mapping[str, SamplerNotLinear]:
        """The samplers that are refused, and why; checked once, in about a second."""
        found = {name: self.refusal(name) for name in (CHECKPOINT, *SAMPLERS)}
        return {name: error for name, error in found.items() if error is not None}

    def check(self, samplers: Iterable[str] = SAMPLERS) -> dict[str, SamplerNotLinear]:
        """Compares tables with diffusers, using a made-up model: canonical name -> why it is refused."""
        found = {name: self._find_refusal(name) for name in map(resolve_sampler, samplers)}
        return {name: error for name, error in found.items() if error is not None}

    def _find_refusal(self, sampler: str) -> SamplerNotLinear | None:
        error = self._find_fault(sampler)
        if error is None or (sampler == CHECKPOINT and self._own_error is not None):
            return error
        culprit = self._find_culprit(sampler)
        if culprit is None:
            return error
        return self._refusal_error(
            sampler, f"the setting `{culprit}` of its {CONFIG}, or diffusers' default for it, is the cause"
        )

    def _find_fault(self, sampler: str) -> SamplerNotLinear | None:
        try:
            limit = self.max_steps(sampler)
            for count in sorted({min(count, limit) for count in _CHECKED_STEPS}):
                schedule, scheduler = self.schedule(sampler, count), self.scheduler(sampler)
                with self._explain_errors(sampler, count):
                    compare(schedule, scheduler)
        except SamplerNotLinear as error:
            return error
        return None

    def _find_culprit(self, sampler: str) -> str | None:
        """Returns the one entry of the config without which `sampler` would be sound."""
        try:
            scheduler = self.scheduler(sampler)
        except SamplerNotLinear:
            return None
        config: dict[str, Any] = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        defaults = inspect.signature(type(scheduler).__init__).parameters
        harmless: dict[str, Any] = {key: each.default for key, each in defaults.items()} | dict(_HARMLESS)
        for key, value in config.items():
            if key in harmless and value != harmless[key]:
                twin = DiffusionSchedulerFactory({**config, key: harmless[key]}, type(scheduler).__name__)
                if twin._find_fault(CHECKPOINT) is None:
                    return key
        return None

    def _refusal_error(self, sampler: str, reason: str) -> SamplerNotLinear:
        title = f"{sampler} ({self._saved.class_name})" if sampler == CHECKPOINT else sampler
        return SamplerNotLinear("sampler", f"{title} cannot be served exactly with this model: {reason}")

    @contextmanager
    def _explain_errors(self, sampler: str, num_inference_steps: int) -> Iterator[None]:
        """Turns every error inside the context into a SamplerNotLinear that names the sampler."""
        try:
            yield
        except SamplerNotLinear as error:
            raise self._refusal_error(sampler, error.message) from error
        except Exception as error:  # whatever diffusers answers to settings that it cannot combine
            raise_if_sticky(error)
            raise self._refusal_error(sampler, f"diffusers fails with it at {num_inference_steps} steps") from error

    def _construct(self, sampler: str) -> Scheduler:
        # Some classes take a quarter of a second to construct; all are quick to copy.
        if sampler == CHECKPOINT:
            if self._own_error is not None:
                raise self._own_error
            return self._own
        row = SAMPLERS[sampler]
        kind = getattr(diffusers, row.scheduler)
        decided = _ROW_DECIDES
        if type(self._own) is kind:
            # The pipeline has such a scheduler already: nothing is swapped, and what was corrected stays so.
            decided |= {"_use_default_values"}
        config = {key: value for key, value in self._config.items() if key not in decided}
        try:
            return kind.from_config(config, **row.settings)
        except Exception as error:  # whatever diffusers answers to settings that it cannot combine
            raise_if_sticky(error)
            raise self._refusal_error(
                sampler, f"diffusers makes no {row.scheduler} of its scheduler's config"
            ) from error

    def _compile(self, sampler: str, num_inference_steps: int, start: int | None) -> Schedule:
        row, scheduler = self.row(sampler), self.scheduler(sampler)
        limit = self.max_steps(sampler)
        if not 1 <= num_inference_steps <= limit:
            raise InvalidParameter("num_inference_steps", f"must be between 1 and {limit} for {row.name}")
        if start is not None and (start % row.order or not 0 <= start < row.order * num_inference_steps):
            raise InvalidParameter("strength", f"leaves {row.name} nothing to do at {num_inference_steps} steps")
        with self._explain_errors(sampler, num_inference_steps):
            scheduler.set_timesteps(num_inference_steps)
            return compile_schedule(sampler, scheduler, num_inference_steps, start)

    def max_steps(self, sampler: str) -> int:
        """Returns the most steps that `sampler` (any of its names) can do."""
        config = self._pristine(resolve_sampler(sampler)).config
        keys = {self.row(sampler).steps_limited_by or "num_train_timesteps", "num_train_timesteps"}
        return min((int(config[key]) for key in keys if config.get(key)), default=_MOST_STEPS)

"""Loads the scheduler that a checkpoint brings: its class and settings, as diffusers' pipelines load and correct them.

`model_index.json` names the class; a scheduler folder by itself names it in its config. Old checkpoints have settings
that diffusers' pipelines correct when they are constructed, and each kind of pipeline corrects others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diffusers

from deployments.engine.checkpoints.file_integrity import read_config
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.inputs import PipelineKind
from deployments.engine.protocol.sampler_names import SamplerNotLinear
from deployments.engine.protocol.spec import INDEX
from deployments.engine.sampling.schedule_compiler import Scheduler

CONFIG: Final = "scheduler_config.json"


@dataclass(frozen=True, eq=False)
class SavedScheduler:
    """A saved scheduler: the name of diffusers' class, "" if no file names it, and the config."""

    class_name: str
    config: Mapping[str, Any]

    def load(self) -> Scheduler:
        """Returns the scheduler, as `from_pretrained` makes it.

        Raises SamplerNotLinear if this diffusers cannot make it.
        """
        if not self.class_name:
            raise SamplerNotLinear("sampler", f"{CONFIG} names no scheduler class (`_class_name`)")
        found = getattr(diffusers, self.class_name, None)
        if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
            raise SamplerNotLinear("sampler", f"the diffusers that is installed has no scheduler {self.class_name!r}")
        kind: Any = found
        if not hasattr(kind, "step") or not hasattr(kind, "order"):
            text = f"diffusers' pipelines for Stable Diffusion do not take a {self.class_name}"
            raise SamplerNotLinear("sampler", text)
        try:
            return kind.from_config(dict(self.config))
        except Exception as error:  # whatever diffusers answers to settings that it cannot combine
            text = (
                f"diffusers cannot make a {self.class_name} with the settings in its {CONFIG}{self._find_culprit(kind)}"
            )
            raise SamplerNotLinear("sampler", text) from error

    def _find_culprit(self, kind: Any) -> str:
        """Names the one setting without which diffusers could make it, as the end of a sentence; "" if none."""
        for key in self.config:
            try:
                kind.from_config({name: value for name, value in self.config.items() if name != key})
            except Exception:
                continue
            return f": `{key}` is the cause"
        return ""


def read_scheduler(title: str, folder: Path, index: Path | None = None) -> SavedScheduler:
    """Reads the scheduler saved in `folder`; `index` is the `model_index.json` of the pipeline that it belongs to, if
    any.

    Raises ModelLoadError, which begins with `title`, for files that cannot be read, and for a scheduler that is not
    diffusers'.
    """
    config = read_config(f"{title}: its scheduler", folder / CONFIG)
    named = _read_class_name(title, index) if index is not None and index.is_file() else config.get("_class_name")
    return SavedScheduler(str(named or "").removeprefix("Flax"), config)


def _read_class_name(title: str, index: Path) -> str:
    """Returns the class that `index` names. If index and config disagree, diffusers uses the index."""
    match read_config(title, index).get("scheduler"):
        case ["diffusers", str(name)]:
            return name
    raise ModelLoadError(
        f'{title}: its {INDEX} must name a scheduler of diffusers: "scheduler": ["diffusers", "PNDMScheduler"], say'
    )


def find_corrections(config: Mapping[str, Any], pipeline: PipelineKind) -> dict[str, Any]:
    """Returns what the constructor of diffusers' pipeline of that kind changes in its scheduler's `config`.

    Pipelines with ControlNets take every scheduler as it is.
    """
    changes: dict[str, Any] = {}
    if pipeline.controlled:
        return changes
    if config.get("steps_offset", 1) != 1:
        changes["steps_offset"] = 1
    if pipeline.task == "inpaint":
        if config.get("skip_prk_steps", True) is False:
            changes["skip_prk_steps"] = True
    elif config.get("clip_sample", False) is True:
        changes["clip_sample"] = False
    return changes

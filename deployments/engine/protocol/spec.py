"""What the engine must know of a model before it loads it. Data about real models lives above, in `registry.py`."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from pathlib import Path
from typing import Any, Final

from deployments.engine.checkpoints.intact import read_config
from deployments.engine.checkpoints.original_configs import VAE
from deployments.engine.checkpoints.original_layout import SingleFile, describe
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.sampler_names import CHECKPOINT

log = logging.getLogger(__name__)

_LEAST: Final = 64


@dataclass(frozen=True, slots=True)
class PartSpec:
    """Where a network, or a tokenizer, comes from: a folder of its own, or a repository on the hub at `revision`."""

    source: str
    revision: str | None = None
    licence: str = ""


PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""What a model is made of: the subfolders of its source that are read."""

INDEX: Final = "model_index.json"
"""The file beside them that says which classes they are of."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One servable model.

    `source` is a folder in diffusers' layout, a checkpoint in one file (safetensors in the original layout of Stable
    Diffusion 1.x and 2.x), or a repository on the hub; `revision` pins the latter to a commit. For a file only:
    `config`, a folder in diffusers' layout whose configs and tokenizer describe a model that is not as published, and
    `prediction_type` (epsilon, v_prediction), where the file does not say it.
    `native_size` is the side in pixels that the model was trained for; 0 means: read it from the folder. Where that
    says that it is no square, `native_shape` is height and width, and `native_size` the side of a square as large.
    `default_sampler` is for callers who name none; CHECKPOINT is the one that the checkpoint's own files say.
    `aliases` are other names that callers may use for it. `controlnets` are the ControlNets that it hosts, by the type
    that callers name; a plain string is a source. `parts` are those of PARTS that its source has not, or that others
    shall take the place of: a VAE of better colours, or what several models have in common. `inpaints_only` is for
    checkpoints whose UNet sees a mask and a picture, too: callers who name no model get one for inpainting, and for
    nothing else.
    """

    name: str
    source: str
    revision: str | None = None
    aliases: tuple[str, ...] = ()
    native_size: int = 0
    native_shape: tuple[int, int] | None = None
    max_pixels: int = 1024 * 1024
    default_sampler: str = CHECKPOINT
    licence: str = ""
    inpaints_only: bool = False
    config: str = ""
    prediction_type: str = ""
    controlnets: Mapping[str, PartSpec | str] = field(default_factory=dict, hash=False)
    parts: Mapping[str, PartSpec | str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown:
            raise ValueError(f"model {self.name!r}: there is no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
        if self.prediction_type not in ("", "epsilon", "v_prediction"):
            raise ValueError(f"model {self.name!r}: prediction_type must be epsilon or v_prediction")

    @property
    def native(self) -> tuple[int, int]:
        """Height and width in pixels of what is made where nobody asks for a size."""
        return self.native_shape or (self.native_size, self.native_size)

    def answers_to(self, name: str) -> bool:
        return name == self.name or name in self.aliases


def as_part(given: PartSpec | str) -> PartSpec:
    """A plain string is a source."""
    return PartSpec(given) if isinstance(given, str) else given


def sources_of(spec: ModelSpec) -> tuple[PartSpec, ...]:
    """Everywhere that files of `spec` come from: its own source, and those of its parts and ControlNets."""
    named = (*spec.parts.values(), *spec.controlnets.values())
    return (PartSpec(spec.source, spec.revision), *(as_part(given) for given in named))


def single_file(spec: ModelSpec) -> SingleFile | None:
    """What the file is that `spec` comes from; None where it comes from elsewhere.

    Raises ModelLoadError for a file that is not served, and for settings that only files have.
    """
    title, path = f"model {spec.name!r}", Path(spec.source)
    if path.is_file():
        return describe(title, path, config=spec.config, prediction_type=spec.prediction_type, others=spec.parts)
    for setting in ("config", "prediction_type"):
        if spec.config if setting == "config" else spec.prediction_type:
            raise ModelLoadError(f"{title}: `{setting}` is for a `source` that is one file; folders have their own")
    return None


def with_native_size(spec: ModelSpec) -> ModelSpec:
    """`spec` with its native size known: UNet sample size times the VAE's downscaling, from the folders' own configs.

    Raises ValueError where the size is not given and the folders are not local, ModelLoadError where they do not say
    it, or not legibly.
    """
    if spec.native_size:
        return spec
    unet, vae = _config(spec, "unet"), _config(spec, "vae")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    height, width = (factor * side for side in _sample_size(f"model {spec.name!r}", unet))
    shape = None if height == width else (height, width)
    return replace(spec, native_size=isqrt(height * width), native_shape=shape)


def _sample_size(title: str, unet: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in latents, as diffusers' pipelines understand a UNet's config.

    Before diffusers 0.9.0 configs said less than 64 where they meant 64; its pipelines correct that.
    """
    match unet.get("sample_size"):
        case int(side) if side > 0 and not isinstance(side, bool):
            if side < _LEAST and "_diffusers_version" in unet and _is_old(title, unet["_diffusers_version"]):
                log.warning("%s: sample_size is %d, as in diffusers; its files say %d", title, _LEAST, side)
                side = _LEAST
            return side, side
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
    raise ModelLoadError(
        f"{title}: `sample_size` in its unet/config.json is neither a number nor a list of two, so its native size is "
        "not known; give `native_size`"
    )


def _is_old(title: str, version: Any) -> bool:
    """Whether `version` of diffusers is before 0.9.0."""
    numbers = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    if numbers is None:
        raise ModelLoadError(f"{title}: `_diffusers_version` in its unet/config.json is no version; give `native_size`")
    return (int(numbers[1]), int(numbers[2])) < (0, 9)


def _config(spec: ModelSpec, part: str) -> Mapping[str, Any]:
    if part not in spec.parts and (file := single_file(spec)) is not None:
        return file.configs[part]
    if part in spec.parts and Path(as_part(spec.parts[part]).source).is_file():
        return VAE  # no other part can be a file of its own
    folder = Path(as_part(spec.parts[part]).source) if part in spec.parts else Path(spec.source) / part
    if not folder.parent.is_dir():
        raise ValueError(f"model {spec.name!r}: native_size must be given, because its source is not a local folder")
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"model {spec.name!r}: there is no config.json for its {part}")
    return read_config(f"model {spec.name!r}: its {part}", path)

"""Specifies a model before it is loaded. The rows for real models are in `registry.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from deployments.engine.protocol.safety import UNCHECKED_MODEL, SafetySpec
from deployments.engine.protocol.sampler_names import CHECKPOINT


@dataclass(frozen=True, slots=True)
class PartSpec:
    """The source of a network or a tokenizer: a folder of its own, or a repository on the hub at `revision`.

    `mode` is for a union ControlNet, of several kinds of hints: the number that it knows this kind by.
    """

    source: str
    revision: str | None = None
    licence: str = ""
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class IpAdapterSpec:
    """The source of an IP-Adapter (Ye et al. 2023), which makes pictures take after reference images.

    `source` is a safetensors file, or a repository on the hub, pinned to a commit by `revision`, with the `file` in it.
    `image_encoder` is the CLIP vision model that it was trained with: a folder, or a repository, in which it is in
    `subfolder`.
    """

    source: str
    image_encoder: str
    revision: str | None = None
    file: str = ""
    image_encoder_revision: str | None = None
    subfolder: str = ""
    licence: str = ""


SECOND_PARTS: Final = ("text_encoder_2", "tokenizer_2")
"""The parts that only models with two text encoders have (Stable Diffusion XL)."""

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", *SECOND_PARTS)
"""The parts of a model: the subfolders of its source that are read."""

INDEX: Final = "model_index.json"
"""The file beside the parts that names their classes."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One servable model.

    `source` is a folder in diffusers' layout, a checkpoint in one file (safetensors in the original layout of Stable
    Diffusion 1.x, 2.x and XL), or a repository on the hub; `revision` pins the latter to a commit, and `file` names the
    one file in it that is the checkpoint, if it is no folder. For a file only: `config`, a folder in diffusers' layout
    whose configs and tokenizer describe a model that differs from the published ones, and `prediction_type` (epsilon,
    v_prediction), if the file does not say it. `native_size` is the side in pixels that the model was trained for; 0
    reads it from the folder. If the native size is no square, `native_shape` is height and width, and `native_size` the
    side of a square of the same area. `default_sampler` is for callers who name none; CHECKPOINT is the one that the
    checkpoint's own files name. `default_steps` and `default_guidance_scale` are for callers who say nothing of these,
    of a model for which the server's own do not fit: one that was distilled to few steps. `aliases` are other names
    that callers may use for it. `controlnets` are the ControlNets that it hosts, by the type that callers name; a plain
    string is a source. `parts` are those of PARTS that its source lacks, or that others replace: a VAE of better
    colours, or what several models have in common. `inpaints_only` is for checkpoints whose UNet also sees a mask and
    an image: callers who name no model get one for inpainting, and for nothing else. With `vae_tiling` pictures larger
    than its VAE was trained for are encoded and decoded in tiles, as with diffusers' `enable_tiling`: it takes less
    memory, and the picture is a slightly different one. `ip_adapters` are those that it hosts, by the name that callers
    use. `safety` says how its finished images are checked. `local_digest` is of those of its files that are on
    this machine, if any, when a server starts: the same names may stand for other weights later.
    """

    name: str
    source: str
    revision: str | None = None
    aliases: tuple[str, ...] = ()
    native_size: int = 0
    native_shape: tuple[int, int] | None = None
    max_pixels: int = 1024 * 1024
    default_sampler: str = CHECKPOINT
    default_steps: int | None = None
    default_guidance_scale: float | None = None
    licence: str = ""
    inpaints_only: bool = False
    vae_tiling: bool = False
    file: str = ""
    config: str = ""
    prediction_type: str = ""
    controlnets: Mapping[str, PartSpec | str] = field(default_factory=dict, hash=False)
    parts: Mapping[str, PartSpec | str] = field(default_factory=dict, hash=False)
    ip_adapters: Mapping[str, IpAdapterSpec] = field(default_factory=dict, hash=False)
    safety: SafetySpec = UNCHECKED_MODEL
    local_digest: str = ""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown:
            raise ValueError(f"model {self.name!r}: there is no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
        if self.prediction_type not in ("", "epsilon", "v_prediction"):
            raise ValueError(f"model {self.name!r}: prediction_type must be epsilon or v_prediction")

    @property
    def native(self) -> tuple[int, int]:
        """Height and width in pixels of images for which no size is asked."""
        return self.native_shape or (self.native_size, self.native_size)

    def has_name(self, name: str) -> bool:
        return name == self.name or name in self.aliases


@dataclass(frozen=True, slots=True)
class UpscalerSpec:
    """A network that enlarges pictures, under the name that callers use.

    `source` is a safetensors file, or a repository on the hub, pinned to a commit by `revision`, with the file in it.
    """

    name: str
    source: str
    revision: str | None = None
    file: str = ""
    licence: str = ""


def as_part(given: PartSpec | str) -> PartSpec:
    """Returns a PartSpec; a plain string is a source."""
    return PartSpec(given) if isinstance(given, str) else given


def sources_of(spec: ModelSpec) -> tuple[PartSpec, ...]:
    """Returns every source of `spec`'s files, of its parts, ControlNets, IP-Adapters and checkers, too."""
    named = (*spec.parts.values(), *spec.controlnets.values())
    adapters = spec.ip_adapters.values()
    checkers = [checker for checker in spec.safety.checkers if spec.safety.is_on and checker.source is not None]
    return (
        PartSpec(spec.source, spec.revision),
        *(as_part(given) for given in named),
        *(PartSpec(each.source, each.revision) for each in adapters),
        *(PartSpec(each.image_encoder, each.image_encoder_revision) for each in adapters),
        *(PartSpec(checker.source, checker.revision) for checker in checkers if checker.source is not None),
    )

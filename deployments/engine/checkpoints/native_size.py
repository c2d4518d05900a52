"""Reads a model's own files: what single file it is, if any, and the size that it was trained for. No torch."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any, Final

from deployments.engine.checkpoints.file_integrity import read_config
from deployments.engine.checkpoints.original_configs import VAE
from deployments.engine.checkpoints.original_layout import SingleFile, describe_file
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import ModelSpec, as_part

log = logging.getLogger(__name__)

_LEAST: Final = 64


def describe_single_file(spec: ModelSpec) -> SingleFile | None:
    """Describes the single file that `spec` comes from; None if it comes from elsewhere, or is still on the hub.

    Raises ModelLoadError for a file that is not served, and for settings that only files have.
    """
    title, path = f"model {spec.name!r}", Path(spec.source)
    if path.is_file():
        return describe_file(title, path, config=spec.config, prediction_type=spec.prediction_type, others=spec.parts)
    if spec.file:
        return None
    for setting in ("config", "prediction_type"):
        if spec.config if setting == "config" else spec.prediction_type:
            raise ModelLoadError(f"{title}: `{setting}` is for a `source` that is one file; folders have their own")
    return None


def with_native_size(spec: ModelSpec) -> ModelSpec:
    """Returns `spec` with its native size: the UNet's sample size times the VAE's downscaling, from the folders' own
    configs.

    Raises ValueError if the size is not given and the folders are not local, ModelLoadError if their configs do not
    give it, or cannot be read.
    """
    if spec.native_size:
        return spec
    unet, vae = _read_part_config(spec, "unet"), _read_part_config(spec, "vae")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    height, width = (factor * side for side in _read_sample_size(f"model {spec.name!r}", unet))
    shape = None if height == width else (height, width)
    return replace(spec, native_size=isqrt(height * width), native_shape=shape)


def read_text_width(spec: ModelSpec) -> int | None:
    """Returns how wide the text is that the model's UNet reads; None if its files are not here, or do not say it."""
    try:
        width = _read_part_config(spec, "unet").get("cross_attention_dim")
    except (ValueError, ModelLoadError):
        return None
    return width if isinstance(width, int) else None


def _read_sample_size(title: str, unet: Mapping[str, Any]) -> tuple[int, int]:
    """Returns height and width in latents, as diffusers' pipelines understand a UNet's config.

    Before diffusers 0.9.0 configs said less than 64 and meant 64; its pipelines correct that.
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
    """Returns True if `version` of diffusers is before 0.9.0."""
    numbers = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    if numbers is None:
        raise ModelLoadError(f"{title}: `_diffusers_version` in its unet/config.json is no version; give `native_size`")
    return (int(numbers[1]), int(numbers[2])) < (0, 9)


def _read_part_config(spec: ModelSpec, part: str) -> Mapping[str, Any]:
    if part not in spec.parts and (file := describe_single_file(spec)) is not None:
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

"""Locates the parts of a model: in its own folder or file, or wherever its row says, and fetches what is not here."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from deployments.engine.checkpoints.native_size import describe_single_file
from deployments.engine.checkpoints.pipeline_index import check_pipeline
from deployments.engine.checkpoints.single_file import (
    FilePart,
    FileScheduler,
    FileTokenizer,
    describe_vae_file,
    parts_of,
)
from deployments.engine.models.components import is_half
from deployments.engine.models.hub import locate, locate_file
from deployments.engine.models.model_checkers import fetch_checkers
from deployments.engine.models.model_ip_adapters import fetch_ip_adapters
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import PARTS, SECOND_PARTS, ModelSpec, PartSpec, as_part

PartLocation = Path | FilePart | FileTokenizer | FileScheduler
"""A part's location: a folder, or inside a file."""

FILES: Final = (
    "it needs unet/, vae/, text_encoder/, tokenizer/ and scheduler/ in diffusers' layout, weights as safetensors"
)


def fetch_model(spec: ModelSpec, dtype: torch.dtype) -> None:
    """Fetches all files that the model needs, or its IP-Adapters will, without loading them. Raises ModelLoadError."""
    locate_parts(spec, half=is_half(dtype))
    for name in spec.controlnets:
        locate_controlnet(spec, name, half=is_half(dtype))
    fetch_checkers(spec, half=is_half(dtype))
    fetch_ip_adapters(spec, half=is_half(dtype))


def locate_parts(spec: ModelSpec, *, half: bool) -> dict[str, PartLocation]:
    """Locates each part: in the model's own folder or file, or wherever `spec.parts` says."""
    title = title_of(spec)
    named = {name: _locate_named(title_of(spec, name), name, as_part(part), half) for name, part in spec.parts.items()}
    own = [name for name in PARTS if name not in spec.parts]
    if spec.file:
        spec = replace(spec, source=str(locate_file(title, spec.source, spec.revision, spec.file)), file="")
    if (file := describe_single_file(spec)) is not None:
        inside = parts_of(title, file)
        return {name: inside[name] for name in own if name in inside or name not in SECOND_PARTS} | named
    root = locate(title, spec.source, spec.revision, own, half=half)
    check_pipeline(title, root, own)
    absent = [name for name in own if not (root / name).is_dir()]
    if missing := [name for name in absent if name not in SECOND_PARTS]:
        raise ModelLoadError(f"{title} could not be loaded from {spec.source!r}: there is no {missing[0]}/; {FILES}")
    return {name: root / name for name in own if name not in absent} | named


def _locate_named(title: str, name: str, part: PartSpec, half: bool) -> PartLocation:
    if Path(part.source).is_file():
        if name != "vae":
            raise ModelLoadError(f"{title}: a single file can only be a VAE; give its folder in diffusers' layout")
        return describe_vae_file(title, Path(part.source))
    return _locate_part(title, part, half=half)


def locate_controlnet(spec: ModelSpec, name: str, *, half: bool) -> Path:
    return _locate_part(controlnet_title(spec, name), as_part(spec.controlnets[name]), half=half)


def _locate_part(title: str, part: PartSpec, *, half: bool) -> Path:
    return locate(title, part.source, part.revision, ("",), half=half)


def title_of(spec: ModelSpec, part: str = "") -> str:
    return f"model {spec.name!r}" + (f": its {part}" if part else "")


def controlnet_title(spec: ModelSpec, name: str) -> str:
    return title_of(spec, f"ControlNet {name!r}")

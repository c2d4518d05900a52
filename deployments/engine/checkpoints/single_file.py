"""Loads the parts of a checkpoint in one file with diffusers' own conversion, if every tensor has its place."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from deployments.engine.checkpoints.clip_tokenizer import build_clip_tokenizer
from deployments.engine.checkpoints.library_networks import AutoencoderKL, UNet2DConditionModel
from deployments.engine.checkpoints.original_configs import VAE
from deployments.engine.checkpoints.original_layout import (
    CLIP,
    CLIP_XL,
    OPEN_CLIP,
    OPEN_CLIP_XL,
    UNET,
    VAE_PREFIXES,
    SingleFile,
)
from deployments.engine.checkpoints.safetensors_header import SafetensorsHeader, read_header
from deployments.engine.checkpoints.vocabulary import load_tokenizer
from deployments.engine.checkpoints.weight_files import check_floating, list_first
from deployments.engine.protocol.errors import ModelLoadError

_CHUNK: Final = 1 << 20
_TEXT_ENCODERS: Final = (CLIPTextModel, CLIPTextModelWithProjection)
# The networks of a VAE's file; the rest, such as a loss, was only for its training.
_VAE_NETWORKS: Final = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# A buffer that only counts up: some files have it, some do not, and nothing reads it.
_POSITIONS: Final = "position_ids"


@dataclass(frozen=True)
class FilePart:
    """A part of a model inside a file. `config` is what its folder in diffusers' layout would hold."""

    title: str
    path: Path
    header: SafetensorsHeader
    prefixes: tuple[str, ...]
    config: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """The names of its tensors."""
        return sorted(name for name in self.header.tensors if name.startswith(self.prefixes))

    @property
    def dtype(self) -> torch.dtype:
        """The precision that holds all its tensors."""
        kinds = {self.header.tensors[name].dtype for name in self.names}
        if kinds <= {"BF16"}:
            return torch.bfloat16
        return torch.float32 if kinds & {"F32", "F64", "BF16"} else torch.float16


@dataclass(frozen=True)
class FileTokenizer:
    """The tokenizer for a file, which has none of its own: the one in `folder`, or CLIP's, padding with `pad_token`."""

    folder: Path | None
    pad_token: str


@dataclass(frozen=True)
class FileScheduler:
    """The scheduler config for a file, which has none of its own."""

    config: Mapping[str, Any]


def parts_of(title: str, file: SingleFile) -> dict[str, FilePart | FileTokenizer | FileScheduler]:
    """Locates each part of the checkpoint `file`."""
    prefixes = {
        "unet": (UNET,),
        "vae": VAE_PREFIXES,
        "text_encoder": (CLIP, OPEN_CLIP, CLIP_XL),
        "text_encoder_2": (OPEN_CLIP_XL,),
    }
    folder = file.config_folder
    return {
        **{
            name: FilePart(f"{title}: its {name}", file.path, file.header, prefixes[name], file.configs[name])
            for name in prefixes
            if name in file.configs
        },
        "tokenizer": FileTokenizer(folder and folder / "tokenizer", file.pad_token),
        **({"tokenizer_2": FileTokenizer(folder and folder / "tokenizer_2", "!")} if file.has_two_texts else {}),
        **({"scheduler": FileScheduler(file.configs["scheduler"])} if "scheduler" in file.configs else {}),
    }


def describe_vae_file(title: str, path: Path) -> FilePart:
    """Describes a VAE in one file, in the original layout with or without a prefix. Raises ModelLoadError."""
    header = read_header(title, path)
    for prefixes in (*((prefix,) for prefix in VAE_PREFIXES), ("",)):
        if any(name.startswith(f"{prefixes[0]}encoder.down.0.") for name in header.tensors):
            return FilePart(title, path, header, prefixes, VAE)
    raise ModelLoadError(
        f"{title}: {path.name!r} is no VAE in the original layout; give its folder in diffusers' layout"
    )


def load_file_part(kind: type, part: FilePart, dtype: torch.dtype) -> Any:
    """Loads the network of class `kind` that `part` holds, in `dtype`, on the CPU.

    Raises ModelLoadError, which names the first tensors that are missing, of another shape, or without a place.
    """
    network = _build_empty(kind, part.config)
    with safe_open(part.path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in part.names}
    if kind is AutoencoderKL:
        tensors = _select_vae_networks(part, tensors)
    converted = _convert(kind, network, part, tensors)
    _check(part, network.state_dict(), converted)
    check_floating(part.title, part.path.name, [k for k, tensor in converted.items() if not tensor.is_floating_point()])
    # Copied, so that the file may be replaced while the model runs.
    network.load_state_dict({name: tensor.to(dtype, copy=True) for name, tensor in converted.items()}, assign=True)
    return network.to(dtype)


def load_file_tokenizer(title: str, tokenizer: FileTokenizer) -> Any:
    """Loads the CLIP tokenizer that goes with the file. Raises ModelLoadError, which begins with `title`."""
    if tokenizer.folder is not None:
        return load_tokenizer(title, tokenizer.folder)
    return build_clip_tokenizer(tokenizer.pad_token)


def file_fingerprint(part: FilePart | FileScheduler) -> str:
    """Returns a digest of a part's config and weights, which identifies the part."""
    digest = hashlib.sha256(json.dumps(part.config, sort_keys=True).encode())
    if isinstance(part, FileScheduler):
        return digest.hexdigest()
    with part.path.open("rb") as file:
        for name in part.names:
            tensor = part.header.tensors[name]
            digest.update(f"{name}{tensor.shape}".encode())
            file.seek(tensor.start)
            left = tensor.end - tensor.start
            while left and (chunk := file.read(min(_CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()


def _build_empty(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    """Builds the network that `config` describes, without memory for its weights."""
    with init_empty_weights():
        network: nn.Module = (
            kind(CLIPTextConfig.from_dict(dict(config))) if kind in _TEXT_ENCODERS else kind.from_config(dict(config))
        )
    return network.eval()


def _select_vae_networks(part: FilePart, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Selects the VAE's networks, under the one prefix that its conversion removes."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix = next(prefix for prefix in part.prefixes if name.startswith(prefix))
        bare = name.removeprefix(prefix)
        if bare.startswith(_VAE_NETWORKS):
            found[f"{VAE_PREFIXES[0]}{bare}"] = tensor
    return found


def _convert(kind: type, network: Any, part: FilePart, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        converted = _converter_for(kind, network, part)(tensors)
    except (KeyError, AttributeError, IndexError, TypeError, RuntimeError):
        raise ModelLoadError(f"{part.title}: {part.path.name!r} does not have the tensors of this network") from None
    placed = {tensor.data_ptr() for tensor in converted.values()}
    # Slices and copies have other addresses, so reshaped tensors cannot be checked this way.
    unplaced = [
        name
        for name, tensor in tensors.items()
        if tensor.data_ptr() not in placed and not name.endswith(_POSITIONS) and not _is_reshaped(name)
    ]
    if unplaced:
        raise ModelLoadError(
            f"{part.title}: {part.path.name!r} has tensors that have no place in it: {list_first(unplaced)}"
        )
    return {name: tensor for name, tensor in converted.items() if not name.endswith(_POSITIONS)}


def _converter_for(kind: type, network: Any, part: FilePart) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    config = dict(part.config)
    if kind is UNet2DConditionModel:
        return lambda tensors: dict(convert_ldm_unet_checkpoint(tensors, {**network.config, **config}))
    if kind is AutoencoderKL:
        return lambda tensors: dict(convert_ldm_vae_checkpoint(tensors, {**network.config, **config}))
    return lambda tensors: _convert_text_encoder(network, tensors)


def _convert_text_encoder(network: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(network, CLIPTextModelWithProjection):
        found = convert_open_clip_checkpoint(network, tensors, prefix=OPEN_CLIP_XL)
    elif any(name.startswith((CLIP, CLIP_XL)) for name in tensors):
        found = convert_ldm_clip_checkpoint(tensors)
    else:
        found = convert_open_clip_checkpoint(network, tensors)
        found.pop("text_projection.weight", None)
    if hasattr(network, "text_model"):
        return dict(found)
    # transformers 5.6 took a level out of the network, and its checkpoints kept it.
    return {name.removeprefix("text_model."): tensor for name, tensor in found.items()}


def _is_reshaped(name: str) -> bool:
    """Returns True if a conversion slices or transposes this tensor, as with OpenCLIP's, whose last layer is unused."""
    return name.startswith((OPEN_CLIP, OPEN_CLIP_XL))


def _check(part: FilePart, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    wanted = [name for name in expected if not name.endswith(_POSITIONS)]
    faults = {
        "lacks": [name for name in wanted if name not in found],
        "has, without a place for them,": [name for name in found if name not in expected],
        "has in another shape": [
            f"{name} ({_shape(found[name])} and not {_shape(expected[name])})"
            for name in wanted
            if name in found and found[name].shape != expected[name].shape
        ],
    }
    for what, names in faults.items():
        if names:
            raise ModelLoadError(f"{part.title}: {part.path.name!r} {what} {list_first(names)}")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))

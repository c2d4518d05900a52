"""Writes the networks of a folder or a file as safetensors, each checked against its config."""

import json
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.auto import modeling_auto

from deployments.engine.checkpoints.networks import load_network
from deployments.engine.checkpoints.original_layout import describe_file
from deployments.engine.checkpoints.single_file import (
    FilePart,
    FileScheduler,
    FileTokenizer,
    load_file_part,
    load_file_tokenizer,
    parts_of,
)
from deployments.engine.device.errors import raise_if_sticky
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import PARTS

# By `_class_name` or `architectures` of a config. A config's names are looked up here, never imported.
_NETWORKS: Final[Mapping[str, Any]] = {
    "UNet2DConditionModel": diffusers.UNet2DConditionModel,
    "AutoencoderKL": diffusers.AutoencoderKL,
    "ControlNetModel": diffusers.ControlNetModel,
    "CLIPTextModel": transformers.CLIPTextModel,
    "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
}
_ANNOTATORS: Final = frozenset(
    (
        *modeling_auto.MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.values(),
        "VitPoseForPoseEstimation",
    )
)
_INDEX: Final = ".index.json"
# By which diffusers recognises the base models of 2.0 and 2.1 in the files of their training.
_BASE_STEPS: Final = 875_000


def prepare() -> None:
    """Imports what the libraries would only import on first use."""
    for name in ("UNet2DConditionModel", "AutoencoderKL", "ControlNetModel"):
        getattr(diffusers, name)
    transformers.CLIPTextModel, transformers.CLIPTokenizer  # noqa: B018
    torch.zeros(1)


def write(source: Path, target: Path, metadata: Mapping[str, str], *, config: str, prediction_type: str) -> None:
    """Writes a folder in diffusers' or transformers' layout, or one of the single network that `source` holds, to
    `target`.

    Raises ModelLoadError, which says which file or tensor is wrong.
    """
    stamp = {"format": "pt", **metadata}
    if source.is_file():
        _write_file(source, target, stamp, config, prediction_type)
        return
    parts = [part for part in PARTS if (source / part).is_dir()]
    for part in parts or [""]:
        _write_folder(part, source / part, target / part, stamp)
    if parts and (source / "model_index.json").is_file():
        shutil.copyfile(source / "model_index.json", target / "model_index.json")


def _write_folder(part: str, source: Path, target: Path, stamp: Mapping[str, str]) -> None:
    title = part or "it"
    target.mkdir(exist_ok=True)
    for path in (*source.glob("*.json"), *source.glob("*.txt")):
        if _INDEX not in path.name and path.name != "model_index.json":
            shutil.copyfile(path, target / path.name)
    if not (source / "config.json").is_file():
        if not part:
            raise ModelLoadError("it has no config.json, so that nothing says which network its weights are")
        return
    kind = _network_class(title, source)
    tensors, half = _read(title, source)
    stem = "diffusion_pytorch_model" if issubclass(kind, diffusers.ModelMixin) else "model"
    path = target / f"{stem}{'.fp16' if half else ''}.safetensors"
    save_file(tensors, path, metadata=dict(stamp))
    del tensors
    _check(title, kind, target, variant="fp16" if half else None)


def _network_class(title: str, folder: Path) -> Any:
    """Returns the class of the network that the folder's config names, if it is a known one."""
    try:
        config = json.loads((folder / "config.json").read_text())
        name = str(config.get("_class_name") or next(iter(config.get("architectures") or ()), None))
    except (ValueError, AttributeError):
        raise ModelLoadError(f"{title}: config.json is not JSON of a network") from None
    if name in _NETWORKS:
        return _NETWORKS[name]
    if name in _ANNOTATORS:
        return getattr(transformers, name)
    raise ModelLoadError(f"{title}: config.json says {name[:60]!r}, which is no network that is served here")


def _read(title: str, folder: Path) -> tuple[dict[str, Tensor], bool]:
    """Returns the tensors of the folder's weights, full precision first, and whether there was half precision only."""
    for ending in (".safetensors", ".bin"):
        files = [path for path in sorted(folder.glob(f"*{ending}")) if ".non_ema." not in path.name]
        full = [path for path in files if ".fp16" not in path.name]
        if files:
            tensors: dict[str, Tensor] = {}
            for path in full or files:
                tensors |= load_file(path) if ending == ".safetensors" else load_pickle(title, path)
            return _separate(tensors), not full
    raise ModelLoadError(f"{title}: it has config.json and no weights beside it")


def load_pickle(title: str, path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a pickled file, by name. Raises ModelLoadError if it holds anything else."""
    return _extract_tensors(title, path, _load(title, path))


def _load(title: str, path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for `{named[1]}`" if named else "holds more than tensors"
        raise ModelLoadError(f"{title}: {path.name!r} {what}: weights never need code, so it is not opened") from None
    except MemoryError:
        raise
    except Exception as error:  # torch raises all sorts on files that are broken
        raise_if_sticky(error)
        raise ModelLoadError(f"{title}: {path.name!r} is broken, cut off, or no file of torch's") from None


def _extract_tensors(title: str, path: Path, found: Any) -> dict[str, Tensor]:
    while isinstance(found, dict) and "state_dict" in found:
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise ModelLoadError(f"{title}: {path.name!r} holds no tensors by name")
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise ModelLoadError(f"{title}: {path.name!r} holds no tensors by name")
    return tensors


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives each tensor memory of its own, as safetensors need. Refuses tensors that claim more than their bytes."""
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ModelLoadError(f"the tensor {name[:100]!r} is no plain tensor of numbers")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ModelLoadError(f"the tensor {name[:100]!r} says that it is larger than its bytes")
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _check(title: str, kind: Any, folder: Path, variant: str | None) -> None:
    """Loads the written folder as it will be served. Raises ModelLoadError unless every tensor has its place."""
    load_network(title, title, folder, kind, torch.float32, torch.device("cpu"), half=variant is not None)


def _write_file(source: Path, target: Path, stamp: Mapping[str, str], config: str, prediction_type: str) -> None:
    """Converts a checkpoint in the original layout to a folder in diffusers'."""
    path = source
    if source.suffix != ".safetensors":
        found = _load("it", source)
        if not prediction_type and isinstance(found, dict) and found.get("global_step") == _BASE_STEPS:
            prediction_type = "epsilon"
        path = target / source.with_suffix(".safetensors").name
        save_file(_separate(_extract_tensors("it", source, found)), path)
        del found
    file = describe_file("it", path, config=config, prediction_type=prediction_type)
    for name, part in parts_of("it", file).items():
        _write_part(name, part, target / name, stamp)
    inpaints = file.configs["unet"]["in_channels"] != file.configs["vae"]["latent_channels"]
    scheduler = file.configs["scheduler"]["_class_name"]
    index = _build_index(scheduler, inpaints=inpaints, has_two_texts=file.has_two_texts)
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    if path != source:
        path.unlink()


def _write_part(
    name: str, part: FilePart | FileTokenizer | FileScheduler, target: Path, stamp: Mapping[str, str]
) -> None:
    target.mkdir()
    if isinstance(part, FileTokenizer):
        load_file_tokenizer(name, part).save_pretrained(target)
        return
    if isinstance(part, FileScheduler):
        (target / "scheduler_config.json").write_text(json.dumps(dict(part.config), indent=2) + "\n")
        return
    kind = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }[name]
    network = load_file_part(kind, part, part.dtype)
    network.save_pretrained(target)
    del network
    (written,) = target.glob("*.safetensors")
    save_file(load_file(written), written.with_suffix(".new"), metadata=dict(stamp))
    written.with_suffix(".new").rename(written)
    _check(name, kind, target, variant=None)


def _build_index(scheduler: str, *, inpaints: bool, has_two_texts: bool) -> dict[str, Any]:
    second = {
        "force_zeros_for_empty_prompt": True,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    return (second if has_two_texts else {}) | {
        "_class_name": f"StableDiffusion{'XL' if has_two_texts else ''}{'Inpaint' if inpaints else ''}Pipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }

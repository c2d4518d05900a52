"""Loads a model's parts once per process: models with the same text encoder, VAE or ControlNet share it."""

import hashlib
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from deployments.engine.checkpoints.networks import check_finite, load_network
from deployments.engine.checkpoints.single_file import FilePart, FileScheduler, file_fingerprint, load_file_part
from deployments.engine.conditioning.controlnet import ControlNet
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.sampling.checkpoint_scheduler import SavedScheduler, read_scheduler
from deployments.engine.sampling.samplers import PipelineSamplers

log = logging.getLogger(__name__)

T = TypeVar("T")

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class PartFolder:
    """A part's folder. Error messages begin with `title`; `source` is what the configuration calls it."""

    title: str
    source: str
    folder: Path


class Components:
    """Loads networks onto one device in one precision. A part lives as long as a model that uses it.

    Every part is loaded whole, or refused with a ModelLoadError.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._shared: weakref.WeakValueDictionary[tuple[type, str], Any] = weakref.WeakValueDictionary()

    @property
    def is_half(self) -> bool:
        """True if weights are wanted in half precision."""
        return is_half(self.dtype)

    def unet(self, part: PartFolder | FilePart) -> UNet2DConditionModel:
        """Loads a UNet that is not shared: the engine changes it, and it counts towards its model's size."""
        return self._load_network(UNet2DConditionModel, part)

    def vae(self, part: PartFolder | FilePart) -> AutoencoderKL:
        """Loads the VAE in `part`, or returns the shared one."""
        return self._load_shared(AutoencoderKL, part, lambda: self._load_network(AutoencoderKL, part))

    def text_encoder(self, part: PartFolder | FilePart) -> CLIPTextModel:
        """Loads the text encoder in `part`, or returns the shared one."""
        return self._load_shared(CLIPTextModel, part, lambda: self._load_network(CLIPTextModel, part))

    def samplers(self, title: str, place: Path | FileScheduler, index: Path | None = None) -> PipelineSamplers:
        """Returns the samplers for the scheduler in `place`, shared with the schedules and checks that they have made.

        `index` is the `model_index.json` of the checkpoint that it belongs to. Raises ModelLoadError, which begins with
        `title`.
        """
        if isinstance(place, FileScheduler):
            saved, digest = SavedScheduler(place.config["_class_name"], place.config), file_fingerprint(place)
        else:
            saved, digest = read_scheduler(title, place, index), fingerprint(place)
        key = f"{saved.class_name}/{digest}"
        return self._get_or_load((PipelineSamplers, key), lambda: PipelineSamplers(saved))

    def controlnet(self, name: str, part: PartFolder) -> ControlNet:
        """Loads the ControlNet in `part`, or returns the one shared by models that call it by the same name."""
        key = f"{name}/{fingerprint(part.folder)}"
        return self._get_or_load((ControlNet, key), lambda: ControlNet(name, self._load_network(ControlNetModel, part)))

    def _load_shared(self, kind: type[T], part: PartFolder | FilePart, load: Callable[[], T]) -> T:
        digest = file_fingerprint(part) if isinstance(part, FilePart) else fingerprint(part.folder)
        return self._get_or_load((kind, digest), load)

    def _get_or_load(self, key: tuple[type, str], load: Callable[[], T]) -> T:
        found: T | None = self._shared.get(key)
        if found is None:
            found = load()
            self._shared[key] = found
        return found

    def _load_network(self, kind: type[T], part: PartFolder | FilePart) -> T:
        if isinstance(part, FilePart):
            return self._load_from_file(kind, part)
        network: T = load_network(
            part.title, part.source, part.folder, kind, self.dtype, self.device, half=self.is_half
        )
        return network

    def _load_from_file(self, kind: type[T], part: FilePart) -> T:
        if is_half(part.dtype) and not self.is_half:
            log.info("%s has half-precision weights only; they are upcast", part.title)
        loaded: Any = load_file_part(kind, part, self.dtype)
        network: T = loaded.to(self.device).eval().requires_grad_(False)
        check_finite(part.title, loaded, self.dtype)
        return network


def fingerprint(folder: Path) -> str:
    """Returns a digest of a part's configs and weights, which identifies the part."""
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def size_of(*networks: nn.Module) -> int:
    """Returns the bytes of all parameters and buffers, shared ones counted once."""
    tensors = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
    }
    return sum(tensors.values())


def is_half(dtype: torch.dtype) -> bool:
    """Returns True if a model that runs in `dtype` wants its weights in half precision."""
    return dtype in (torch.float16, torch.bfloat16)


def wants_half(device: str, dtype: str) -> bool:
    """Returns True if a model that runs on a `device` of that type in `dtype` wants its weights in half precision."""
    return is_half(pick_dtype(dtype, torch.device(device)))


def pick_device(name: str) -> torch.device:
    """Returns the device for auto, cpu, cuda, cuda:0, ... Raises ModelLoadError for a CUDA device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelLoadError(f"device {name!r} is asked for, and torch sees no CUDA device here")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype for auto, float32, float16 or bfloat16.

    `auto` is fp16 on CUDA, where SD1.5 and SD2.1 were published in it, and fp32 elsewhere.
    """
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in known:
        raise ValueError(f"dtype must be auto or one of {', '.join(known)}, got {name!r}")
    return known[name]

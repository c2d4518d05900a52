"""A model's parts, loaded once per process: models that bring the same text encoder, VAE or ControlNet share it."""

import hashlib
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from deployments.engine.controls import ControlNet
from deployments.engine.errors import ModelLoadError
from deployments.engine.hub import variant_of
from deployments.engine.samplers import DiffusionSchedulerFactory
from deployments.engine.single_file import (
    FilePart,
    FileScheduler,
    FileTokenizer,
    file_fingerprint,
    load_file_part,
    load_file_tokenizer,
)

T = TypeVar("T")

_CHUNK = 1 << 20


class Parts:
    """Loads networks onto one device in one precision. A part lives as long as a model that uses it."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._shared: weakref.WeakValueDictionary[tuple[type, str], Any] = weakref.WeakValueDictionary()

    @property
    def half(self) -> bool:
        """Whether weights are wanted in half precision."""
        return is_half(self.dtype)

    def unet(self, folder: Path | FilePart) -> UNet2DConditionModel:
        """A UNet of its own: the engine changes it, and each model's counts as that model's size."""
        return cast(UNet2DConditionModel, self._ready(UNet2DConditionModel, folder))

    def vae(self, folder: Path | FilePart) -> AutoencoderKL:
        """The VAE in `folder`, shared."""
        return self._once(AutoencoderKL, folder, lambda: self._ready(AutoencoderKL, folder))

    def text_encoder(self, folder: Path | FilePart) -> CLIPTextModel:
        """The text encoder in `folder`, shared."""
        return self._once(CLIPTextModel, folder, lambda: self._ready(CLIPTextModel, folder))

    def samplers(self, folder: Path | FileScheduler) -> DiffusionSchedulerFactory:
        """The factory for the scheduler config in `folder`, shared, with the schedules and checks that it has made."""
        return self._once(
            DiffusionSchedulerFactory, folder, lambda: DiffusionSchedulerFactory(scheduler_config(folder))
        )

    def controlnet(self, name: str, folder: Path) -> ControlNet:
        """The ControlNet in `folder`, shared by models that call it by the same name."""
        key = f"{name}/{fingerprint(folder)}"
        return self._shared_or((ControlNet, key), lambda: ControlNet(name, self._ready(ControlNetModel, folder)))

    def _once(self, kind: type[T], folder: Path | FilePart | FileScheduler, load: Callable[[], T]) -> T:
        return self._shared_or((kind, fingerprint(folder)), load)

    def _shared_or(self, key: tuple[type, str], load: Callable[[], T]) -> T:
        found: T | None = self._shared.get(key)
        if found is None:
            found = load()
            self._shared[key] = found
        return found

    def _ready(self, kind: Any, folder: Path | FilePart) -> Any:
        network: nn.Module = (
            load_file_part(kind, folder, self.dtype)
            if isinstance(folder, FilePart)
            else self._from_folder(kind, folder)
        )
        return network.to(self.device).eval().requires_grad_(False)

    def _from_folder(self, kind: Any, folder: Path) -> Any:
        variant = variant_of(folder, half=self.half)
        # transformers has renamed the argument, diffusers has not.
        precision = {"dtype" if kind is CLIPTextModel else "torch_dtype": self.dtype}
        return kind.from_pretrained(folder, use_safetensors=True, variant=variant, **precision)


def scheduler_config(folder: Path | FileScheduler) -> Mapping[str, Any]:
    """The scheduler config in `folder`."""
    if isinstance(folder, FileScheduler):
        return folder.config
    config: Mapping[str, Any] = DDIMScheduler.load_config(folder)
    return config


def load_tokenizer(folder: Path | FileTokenizer) -> CLIPTokenizer:
    """The tokenizer in `folder`."""
    if isinstance(folder, FileTokenizer):
        return load_file_tokenizer(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def fingerprint(folder: Path | FilePart | FileScheduler) -> str:
    """What tells two parts apart: their configs and weights, to the byte."""
    if not isinstance(folder, Path):
        return file_fingerprint(folder)
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def size_of(*networks: nn.Module) -> int:
    """Bytes of all parameters and buffers, what they share counted once."""
    tensors = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
    }
    return sum(tensors.values())


def is_half(dtype: torch.dtype) -> bool:
    """Whether a model that runs in `dtype` wants its weights in half precision."""
    return dtype in (torch.float16, torch.bfloat16)


def pick_device(name: str) -> torch.device:
    """auto, cpu, cuda, cuda:0, ... Raises ModelLoadError for a CUDA device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelLoadError(f"device {name!r} is asked for, and torch sees no CUDA device here")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto, float32, float16 or bfloat16.

    `auto` is fp16 on CUDA, where SD1.5 and SD2.1 were published in it, and fp32 elsewhere.
    """
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in known:
        raise ValueError(f"dtype must be auto or one of {', '.join(known)}, got {name!r}")
    return known[name]

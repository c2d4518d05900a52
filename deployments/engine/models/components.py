"""Loads a model's parts once per process: models with the same text encoder, VAE or ControlNet share it."""

import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from deployments.engine.calibration.kept_files import NOTHING_KEPT, KeptFiles
from deployments.engine.checkpoints.file_integrity import digest_files, refuse_changes
from deployments.engine.checkpoints.library_networks import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    UNet2DConditionModel,
)
from deployments.engine.checkpoints.networks import check_finite, load_network
from deployments.engine.checkpoints.single_file import FilePart, FileScheduler, file_fingerprint, load_file_part
from deployments.engine.conditioning.controlnet import ControlNet, take_out_hint_encoder
from deployments.engine.conditioning.deep_cache import DeepCache, can_split
from deployments.engine.conditioning.union_controlnet import UnionControlNet, UnionKind
from deployments.engine.cuda.compiled_calls import CompilableNetwork, CompilableVae
from deployments.engine.cuda.networks import Backend, prepare_for_cuda
from deployments.engine.cuda.settings import configure_cuda
from deployments.engine.ip_adapter.adapter import IpAdapter
from deployments.engine.ip_adapter.reader import LayerShapes, read_ip_adapter
from deployments.engine.ip_adapter.vision_encoder import VisionEncoder, load_vision_encoder
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.safety import CHECKER_PARTS
from deployments.engine.sampling.checkpoint_scheduler import SavedScheduler, read_scheduler
from deployments.engine.sampling.samplers import PipelineSamplers

if TYPE_CHECKING:
    from deployments.engine.openvino.runtime import OpenVinoRuntime
    from deployments.engine.safety.concept_checker import ConceptChecker

log = logging.getLogger(__name__)

T = TypeVar("T")

_CONVOLUTIONAL = (UNet2DConditionModel, AutoencoderKL, ControlNetModel, ControlNetUnionModel)


@dataclass(frozen=True, slots=True)
class PartFolder:
    """A part's folder. Error messages begin with `title`; `source` is what the configuration calls it."""

    title: str
    source: str
    folder: Path


class Components:
    """Loads networks onto one device in one precision. A part lives as long as a model that uses it.

    Every part is loaded whole, or refused with a ModelLoadError. On CUDA, convolution networks are prepared for it.
    `kept` remembers the checks of samplers.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        kept: KeptFiles = NOTHING_KEPT,
        *,
        openvino: "OpenVinoRuntime | None" = None,
        compile_with: Backend | None = None,
    ) -> None:
        """With `openvino` the networks run on it, and torch's weights are dropped as soon as they are converted.

        With `compile_with`, a backend of torch.compile, convolution networks can be compiled (`worker/compilation.py`).
        """
        self.device = device
        self.dtype = dtype
        self._kept = kept
        self._openvino, self._compile_with = openvino, compile_with
        self._shared: weakref.WeakValueDictionary[tuple[type, str], Any] = weakref.WeakValueDictionary()
        self._unets: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()  # with their digests
        # Held while a part loads: IP-Adapters are loaded beside models. Parts are made of parts.
        self._loading = threading.RLock()
        if device.type == "cuda":
            configure_cuda()

    @property
    def is_half(self) -> bool:
        """True if weights are wanted in half precision."""
        return is_half(self.dtype)

    def unet(self, part: PartFolder | FilePart) -> UNet2DConditionModel:
        """Loads a UNet that is not shared: the engine changes it, and it counts towards its model's size."""
        with refuse_changes(part.title, _files_of(part)):
            unet = self._load_network(UNet2DConditionModel, part)
            self._unets[unet] = "" if self._openvino is None else _digest_of(part)
        return unet

    def finish_unet(self, unet: UNet2DConditionModel, part: PartFolder | FilePart) -> Any:
        """Returns the UNet loaded from `part`, and changed since, as it is to run."""
        if self._openvino is not None:
            return self._openvino.run_unet(unet, part.title, self._unets[unet])
        return unet if self._compile_with is None else CompilableNetwork(unet, part.title, self._compile_with)

    def deep_cache(self, unet: Any) -> DeepCache | None:
        """Returns what calls a finished UNet without its deep blocks; None if that UNet cannot be split."""
        if self._openvino is not None:
            found: DeepCache | None = unet.deep_cache
            return found
        # It calls the UNet's blocks one by one, and listens to them: to be compiled is not for it.
        plain = unet.plain if isinstance(unet, CompilableNetwork) else unet
        return DeepCache(plain) if can_split(plain) else None

    def vae(self, part: PartFolder | FilePart, *, obeys_upcast: bool = False) -> AutoencoderKL:
        """Loads the VAE in `part`, or returns the shared one.

        With `obeys_upcast` one whose config has `force_upcast` runs in fp32 where others run in fp16, as in diffusers'
        pipelines for Stable Diffusion XL.
        """
        openvino = self._openvino
        upcasts = obeys_upcast and self.dtype == torch.float16

        def load(digest: str) -> Any:
            vae = self._load_network(AutoencoderKL, part)
            if upcasts and vae.config.force_upcast:
                vae = vae.float()
            if openvino is not None:
                return openvino.run_vae(vae, part.title, digest)
            return vae if self._compile_with is None else CompilableVae(vae, part.title, self._compile_with)

        return self._load_shared(AutoencoderKL, part, load, "upcast" if upcasts else "")

    def text_encoder(self, part: PartFolder | FilePart) -> CLIPTextModel:
        """Loads the text encoder in `part`, or returns the shared one."""
        return self._load_text_encoder(CLIPTextModel, part)

    def second_text_encoder(self, part: PartFolder | FilePart) -> CLIPTextModelWithProjection:
        """Loads a second text encoder, which has a projection, or returns the shared one."""
        return self._load_text_encoder(CLIPTextModelWithProjection, part)

    def samplers(
        self, title: str, place: Path | FileScheduler, index: Path | None = None, *, corrects: bool = True
    ) -> PipelineSamplers:
        """Returns the samplers for the scheduler in `place`, shared with the schedules and checks that they have made.

        `index` is the `model_index.json` of the checkpoint that it belongs to; `corrects` says that diffusers'
        pipelines for it correct its scheduler. Raises ModelLoadError, which begins with `title`.
        """
        if isinstance(place, FileScheduler):
            saved, digest = SavedScheduler(place.config["_class_name"], place.config), file_fingerprint(place)
        else:
            saved, digest = read_scheduler(title, place, index), fingerprint(place)
        key = f"{saved.class_name}/{digest}/{corrects}"
        return self._get_or_load(
            (PipelineSamplers, key), lambda: PipelineSamplers(saved, self._kept, corrects=corrects)
        )

    def controlnet(self, name: str, part: PartFolder, mode: int | None = None) -> ControlNet:
        """Loads the ControlNet in `part`, or returns the one shared by models that call it by the same name.

        With a `mode` it is a union ControlNet, whose other kinds share its weights, but for OpenVINO's.
        """

        def load(digest: str) -> ControlNet:
            if mode is None:
                net = ControlNet(name, self._load_network(ControlNetModel, part))
            else:
                union = self._union_controlnet(part, digest)
                net = ControlNet(name, UnionKind(part.title, union, mode), union.embedder)
            if self._openvino is not None:
                self._openvino.run_controlnet(net, part.title, digest if mode is None else f"{digest}/{mode}")
            elif self._compile_with is not None:
                net.network = CompilableNetwork(net.network, part.title, self._compile_with)
            return net

        with refuse_changes(part.title, _files_of(part)):
            digest = _digest_of(part)
            return self._get_or_load((ControlNet, f"{name}/{digest}/{mode}"), lambda: load(digest))

    def concept_checker(self, title: str, source: str, root: Path) -> "ConceptChecker":
        """Loads Stable Diffusion's own safety checker from the folder `root`, or returns the shared one."""
        from deployments.engine.safety.concept_checker import ConceptChecker, load_concept_checker

        digest = "/".join(fingerprint(root / part) for part in CHECKER_PARTS)
        return self._get_or_load(
            (ConceptChecker, digest),
            lambda: load_concept_checker(title, source, root, self.dtype, self.device, half=self.is_half),
        )

    def ip_adapter(self, title: str, path: Path, layers: LayerShapes, encoder: PartFolder) -> IpAdapter:
        """Loads the IP-Adapter in the file `path`, for UNets of these `layers`, with its image encoder, or returns the
        shared one.
        """

        def load() -> IpAdapter:
            vision = self._get_or_load((VisionEncoder, of_encoder), lambda: self._vision_encoder(encoder))
            return IpAdapter(title, read_ip_adapter(title, path, layers), vision, self.device, self.dtype)

        of_encoder = fingerprint(encoder.folder)
        return self._get_or_load((IpAdapter, f"{digest_files([path])}/{tuple(layers)}/{of_encoder}"), load)

    def _vision_encoder(self, part: PartFolder) -> VisionEncoder:
        return load_vision_encoder(part.title, part.source, part.folder, self.dtype, self.device, half=self.is_half)

    def _union_controlnet(self, part: PartFolder, digest: str) -> UnionControlNet:
        def load() -> UnionControlNet:
            network = self._load_network(ControlNetUnionModel, part)
            return UnionControlNet(network, take_out_hint_encoder(network))

        # OpenVINO converts each kind, and drops the weights that it was made of.
        return load() if self._openvino is not None else self._get_or_load((UnionControlNet, digest), load)

    def _load_text_encoder(self, kind: type[T], part: PartFolder | FilePart) -> T:
        openvino = self._openvino

        def load(digest: str) -> Any:
            encoder = self._load_network(kind, part)
            return encoder if openvino is None else openvino.run_text_encoder(encoder, part.title, digest)

        return self._load_shared(kind, part, load)

    def _load_shared(self, kind: type[T], part: PartFolder | FilePart, load: Callable[[str], T], how: str = "") -> T:
        with refuse_changes(part.title, _files_of(part)):
            digest = _digest_of(part)
            return self._get_or_load((kind, digest + how), lambda: load(digest))

    def _get_or_load(self, key: tuple[type, str], load: Callable[[], T]) -> T:
        with self._loading:
            found: T | None = self._shared.get(key)
            if found is None:
                found = load()
                self._shared[key] = found
            return found

    def _load_network(self, kind: type[T], part: PartFolder | FilePart) -> T:
        network: T
        if isinstance(part, FilePart):
            network = self._load_from_file(kind, part)
        else:
            how = self.dtype, self.device
            network = load_network(part.title, part.source, part.folder, kind, *how, half=self.is_half)
        if self.device.type == "cuda" and isinstance(network, _CONVOLUTIONAL):
            prepare_for_cuda(network)
        return network

    def _load_from_file(self, kind: type[T], part: FilePart) -> T:
        if is_half(part.dtype) and not self.is_half:
            log.info("%s has half-precision weights only; they are upcast", part.title)
        loaded: Any = load_file_part(kind, part, self.dtype)
        network: T = loaded.to(self.device).eval().requires_grad_(False)
        check_finite(part.title, loaded, self.dtype)
        return network


def _digest_of(part: PartFolder | FilePart) -> str:
    return file_fingerprint(part) if isinstance(part, FilePart) else fingerprint(part.folder)


def fingerprint(folder: Path) -> str:
    """Returns a digest of a part's configs and weights, which identifies the part."""
    return digest_files(_weights_and_configs(folder))


def _files_of(part: PartFolder | FilePart) -> list[Path]:
    return [part.path] if isinstance(part, FilePart) else _weights_and_configs(part.folder)


def _weights_and_configs(folder: Path) -> list[Path]:
    return sorted((*folder.glob("*.json"), *folder.glob("*.safetensors")))


def size_of(*networks: nn.Module) -> int:
    """Returns the bytes of all parameters and buffers, shared ones counted once."""
    tensors = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
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


def set_threads(threads: int | None) -> None:
    """Bounds the CPU threads that torch uses for calls of this thread."""
    if threads is not None:
        torch.set_num_threads(threads)


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

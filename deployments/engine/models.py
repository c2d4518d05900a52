"""A model's networks, loaded and ready, with the tables and caches that belong to them."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deployments.engine.attention import AttentionChoice, choose_attention
from deployments.engine.conditioning import PromptEncoder
from deployments.engine.controls import ControlNet
from deployments.engine.errors import EngineError, ModelLoadError
from deployments.engine.hub import locate
from deployments.engine.parts import Parts, is_half, load_tokenizer, size_of
from deployments.engine.pictures import PictureEncoder
from deployments.engine.prompt_keys import PromptKeys
from deployments.engine.samplers import DiffusionSchedulerFactory
from deployments.engine.single_file import FilePart, FileScheduler, FileTokenizer, parts_of, vae_file
from deployments.engine.spec import PARTS, ModelSpec, PartSpec, as_part, single_file, with_native_size

log = logging.getLogger(__name__)

Place = Path | FilePart | FileTokenizer | FileScheduler
"""Where a part is: in a folder, or in a file."""

_FILES = "it needs unet/, vae/, text_encoder/, tokenizer/ and scheduler/ in diffusers' layout, weights as safetensors"
_PART_FILES = "it needs config.json and weights as safetensors, in diffusers' layout, or a tokenizer's files"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """Everything that rows of one model share. `unet` and `vae` are diffusers' networks in `dtype` on `device`."""

    spec: ModelSpec
    unet: Any
    vae: Any
    prompts: PromptEncoder
    samplers: DiffusionSchedulerFactory
    refused_samplers: Mapping[str, EngineError]
    alphas_cumprod: Tensor
    prediction_type: str
    device: torch.device
    dtype: torch.dtype
    attention: AttentionChoice
    pictures: PictureEncoder
    keys: PromptKeys
    controlnets: Mapping[str, ControlNet] = field(default_factory=dict)
    networks: tuple[nn.Module, ...] = ()
    load_seconds: float = 0.0

    @property
    def bytes(self) -> int:
        """Memory of all its networks' weights, those included that it shares with other models."""
        return size_of(*self.networks)

    @property
    def inpaints_only(self) -> bool:
        """Whether the UNet sees a mask and a masked picture beside the latents (the 9-channel checkpoints)."""
        return int(self.unet.config.in_channels) == 2 * self.channels + 1

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self.vae.config.latent_channels)

    @property
    def factor(self) -> int:
        """Pixels per latent, in each direction."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def load_model(spec: ModelSpec, device: torch.device, dtype: torch.dtype, parts: Parts | None = None) -> LoadedModel:
    """Loads `spec` from a local folder, or from the hub at its pinned revision; safetensors only, no remote code.

    What `parts` has loaded for other models already is shared. Raises ModelLoadError, which says what is missing, or
    that a revision must be pinned.
    """
    title = f"model {spec.name!r}"
    parts = parts or Parts(device, dtype)
    folders = _locate_parts(spec, half=parts.half)
    # Parts in files stay as they were given: their configs are known without fetching anything.
    found = {name: PartSpec(str(folder)) for name, folder in folders.items() if isinstance(folder, Path)}
    found = {**{name: as_part(part) for name, part in spec.parts.items()}, **found}
    try:
        model = _load(with_native_size(replace(spec, parts=found)), folders, parts)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{title} could not be loaded from {spec.source!r}: {_FILES}") from error
    return replace(model, spec=replace(model.spec, parts=spec.parts))


def fetch_model(spec: ModelSpec, dtype: torch.dtype) -> None:
    """Brings to this machine, without loading them, all files that `load_model` would read. Raises ModelLoadError."""
    _locate_parts(spec, half=is_half(dtype))
    for name in spec.controlnets:
        _locate_controlnet(spec, name, half=is_half(dtype))


def _locate_parts(spec: ModelSpec, *, half: bool) -> dict[str, Place]:
    """Where each part is: in the model's own folder or file, or wherever `spec.parts` says."""
    title = f"model {spec.name!r}"
    named = {
        name: _locate_named(f"{title}: its {name}", name, as_part(part), half) for name, part in spec.parts.items()
    }
    own = [name for name in PARTS if name not in spec.parts]
    if (file := single_file(spec)) is not None:
        inside = parts_of(title, file)
        return {name: inside[name] for name in own} | named
    root = locate(title, spec.source, spec.revision, own, half=half)
    return {name: root / name for name in own} | named


def _locate_named(title: str, name: str, part: PartSpec, half: bool) -> Place:
    if Path(part.source).is_file():
        if name != "vae":
            raise ModelLoadError(f"{title}: a single file can only be a VAE; give its folder in diffusers' layout")
        return vae_file(title, Path(part.source))
    return _locate_part(title, part, half=half)


def _locate_controlnet(spec: ModelSpec, name: str, *, half: bool) -> Path:
    return _locate_part(_controlnet_title(spec, name), as_part(spec.controlnets[name]), half=half)


def _locate_part(title: str, part: PartSpec, *, half: bool) -> Path:
    return locate(title, part.source, part.revision, ("",), half=half)


def _controlnet_title(spec: ModelSpec, name: str) -> str:
    return f"model {spec.name!r}: its ControlNet {name!r}"


def _load(spec: ModelSpec, folders: Mapping[str, Any], parts: Parts) -> LoadedModel:
    started = time.perf_counter()
    device, dtype = parts.device, parts.dtype
    unet, vae, text_encoder = (
        parts.unet(folders["unet"]),
        parts.vae(folders["vae"]),
        parts.text_encoder(folders["text_encoder"]),
    )
    if int(unet.config.in_channels) not in (vae.config.latent_channels, 2 * vae.config.latent_channels + 1):
        raise ModelLoadError(f"model {spec.name!r}: a UNet of {unet.config.in_channels} input channels is not known")
    if spec.inpaints_only and unet.config.in_channels == vae.config.latent_channels:
        raise ModelLoadError(f"model {spec.name!r}: `inpaints_only` is set, but its UNet has no channels for a mask")
    samplers = parts.samplers(folders["scheduler"])
    tokenizer = load_tokenizer(folders["tokenizer"])
    controlnets = {name: _controlnet(spec, name, parts) for name in spec.controlnets}
    model = LoadedModel(
        spec=spec,
        unet=unet,
        vae=vae,
        prompts=PromptEncoder(tokenizer, text_encoder, device, dtype),
        samplers=samplers,
        refused_samplers=_refused(spec, samplers),
        alphas_cumprod=samplers.alphas_cumprod,
        prediction_type=samplers.prediction_type,
        device=device,
        dtype=dtype,
        attention=choose_attention(unet, device, dtype),
        pictures=PictureEncoder(vae, device, dtype),
        keys=PromptKeys(unet),
        controlnets=controlnets,
        networks=(unet, vae, text_encoder, *(network for net in controlnets.values() for network in net.networks)),
    )
    seconds = time.perf_counter() - started
    log.info("model %s: %.0f MB loaded in %.1f s", spec.name, model.bytes / 1e6, seconds)
    return replace(model, load_seconds=round(seconds, 3))


def _controlnet(spec: ModelSpec, name: str, parts: Parts) -> ControlNet:
    folder = _locate_controlnet(spec, name, half=parts.half)
    try:
        return parts.controlnet(name, folder)
    except (OSError, ValueError, KeyError) as error:
        source = as_part(spec.controlnets[name]).source
        text = f"{_controlnet_title(spec, name)} could not be loaded from {source!r}: {_PART_FILES}"
        raise ModelLoadError(text) from error


def _refused(spec: ModelSpec, samplers: DiffusionSchedulerFactory) -> Mapping[str, EngineError]:
    """The samplers whose tables do not reproduce diffusers with this model's scheduler config."""
    refused = samplers.refused
    for name, error in refused.items():
        log.warning("model %s: sampler %s is refused: %s", spec.name, name, error.message)
    return refused

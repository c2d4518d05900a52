"""A model's networks, loaded and ready, with the tables and caches that belong to them."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME
from torch import Tensor, nn

from deployments.engine.attention import AttentionChoice, choose_attention
from deployments.engine.conditioning import PromptEncoder
from deployments.engine.controls import ControlNet
from deployments.engine.errors import EngineError, ModelLoadError
from deployments.engine.hub import locate
from deployments.engine.intact import read_config
from deployments.engine.part_fit import check_controlnet, check_parts
from deployments.engine.parts import PartFolder, Parts, is_half, size_of
from deployments.engine.pictures import PictureEncoder
from deployments.engine.pipeline_index import check_pipeline
from deployments.engine.prompt_keys import PromptKeys
from deployments.engine.samplers import DiffusionSchedulerFactory
from deployments.engine.spec import PARTS, ModelSpec, PartSpec, as_part, with_native_size
from deployments.engine.vocabulary import check_vocabulary, load_tokenizer

log = logging.getLogger(__name__)

_FILES = "it needs unet/, vae/, text_encoder/, tokenizer/ and scheduler/ in diffusers' layout, weights as safetensors"


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
    not served, and in which part, or that a revision must be pinned.
    """
    parts = parts or Parts(device, dtype)
    folders = _locate_parts(spec, half=parts.half)
    found = {name: PartSpec(str(folder)) for name, folder in folders.items()}
    try:
        model = _load(with_native_size(replace(spec, parts=found)), spec, folders, parts)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelLoadError(f"{_title(spec)} could not be loaded from {spec.source!r}: {_FILES}") from error
    return replace(model, spec=replace(model.spec, parts=spec.parts))


def fetch_model(spec: ModelSpec, dtype: torch.dtype) -> None:
    """Brings to this machine, without loading them, all files that `load_model` would read. Raises ModelLoadError."""
    _locate_parts(spec, half=is_half(dtype))
    for name in spec.controlnets:
        _locate_controlnet(spec, name, half=is_half(dtype))


def _locate_parts(spec: ModelSpec, *, half: bool) -> dict[str, Path]:
    """The folder of each part: in the model's own, or wherever `spec.parts` says."""
    title = _title(spec)
    own = [name for name in PARTS if name not in spec.parts]
    root = locate(title, spec.source, spec.revision, own, half=half)
    check_pipeline(title, root, own)
    absent = [name for name in own if not (root / name).is_dir()]
    if absent:
        raise ModelLoadError(f"{title} could not be loaded from {spec.source!r}: there is no {absent[0]}/; {_FILES}")
    return {name: root / name for name in own} | {
        name: _locate_part(_title(spec, name), as_part(part), half=half) for name, part in spec.parts.items()
    }


def _locate_controlnet(spec: ModelSpec, name: str, *, half: bool) -> Path:
    return _locate_part(_controlnet_title(spec, name), as_part(spec.controlnets[name]), half=half)


def _locate_part(title: str, part: PartSpec, *, half: bool) -> Path:
    return locate(title, part.source, part.revision, ("",), half=half)


def _title(spec: ModelSpec, part: str = "") -> str:
    return f"model {spec.name!r}" + (f": its {part}" if part else "")


def _controlnet_title(spec: ModelSpec, name: str) -> str:
    return _title(spec, f"ControlNet {name!r}")


def _load(spec: ModelSpec, asked: ModelSpec, folders: Mapping[str, Path], parts: Parts) -> LoadedModel:
    """`spec` has the local folders of all parts, `asked` where they come from."""
    started = time.perf_counter()
    device, dtype = parts.device, parts.dtype

    def part(name: str) -> PartFolder:
        source = as_part(asked.parts[name]).source if name in asked.parts else asked.source
        return PartFolder(_title(spec, name), source, folders[name])

    # The small files first: what they tell need not wait for the weights.
    read_config(_title(spec, "scheduler"), folders["scheduler"] / SCHEDULER_CONFIG_NAME)
    tokenizer = load_tokenizer(_title(spec, "tokenizer"), folders["tokenizer"])
    unet, vae, text_encoder = parts.unet(part("unet")), parts.vae(part("vae")), parts.text_encoder(part("text_encoder"))
    check_parts(_title(spec), unet, vae, text_encoder)
    check_vocabulary(_title(spec, "tokenizer"), tokenizer, text_encoder.config)
    if spec.inpaints_only and unet.config.in_channels == vae.config.latent_channels:
        raise ModelLoadError(f"model {spec.name!r}: `inpaints_only` is set, but its UNet has no channels for a mask")
    samplers = parts.samplers(folders["scheduler"])
    controlnets = {name: _controlnet(spec, name, parts) for name in spec.controlnets}
    for name, net in controlnets.items():
        check_controlnet(_controlnet_title(spec, name), net.network, unet, vae, text_encoder)
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
    source = as_part(spec.controlnets[name]).source
    return parts.controlnet(name, PartFolder(_controlnet_title(spec, name), source, folder))


def _refused(spec: ModelSpec, samplers: DiffusionSchedulerFactory) -> Mapping[str, EngineError]:
    """The samplers whose tables do not reproduce diffusers with this model's scheduler config."""
    refused = samplers.refused
    for name, error in refused.items():
        log.warning("model %s: sampler %s is refused: %s", spec.name, name, error.message)
    return refused

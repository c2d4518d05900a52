"""A model's networks, loaded and ready, with the tables and caches that belong to them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from deployments.engine.attention import AttentionChoice, choose_attention
from deployments.engine.conditioning import PromptEncoder
from deployments.engine.controls import ControlNet
from deployments.engine.errors import EngineError, ModelLoadError
from deployments.engine.pictures import PictureEncoder
from deployments.engine.prompt_keys import PromptKeys
from deployments.engine.samplers import DiffusionSchedulerFactory
from deployments.engine.spec import ControlNetSpec, ModelSpec, with_native_size

log = logging.getLogger(__name__)

_FILES = "it needs unet/, vae/, text_encoder/, tokenizer/ and scheduler/ in diffusers' layout, weights as safetensors"
_CONTROLNET_FILES = "it needs config.json and weights as safetensors, in diffusers' layout"


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


def load_model(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Loads `spec` from a local folder, or from the hub at its pinned revision; safetensors only, no remote code.

    Raises ModelLoadError, which says what is missing, or that a revision must be pinned.
    """
    if not Path(spec.source).is_dir() and spec.revision is None:
        raise ModelLoadError(f"model {spec.name!r}: {spec.source!r} is not a local folder and has no pinned revision")
    where: dict[str, Any] = {} if Path(spec.source).is_dir() else {"revision": spec.revision}
    try:
        return _load(with_native_size(spec), where, device, dtype)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"model {spec.name!r} could not be loaded from {spec.source!r}: {_FILES}") from error


def _load(spec: ModelSpec, where: dict[str, Any], device: torch.device, dtype: torch.dtype) -> LoadedModel:
    weights = {"use_safetensors": True, "torch_dtype": dtype, **where}
    unet = UNet2DConditionModel.from_pretrained(spec.source, subfolder="unet", **weights)
    vae = AutoencoderKL.from_pretrained(spec.source, subfolder="vae", **weights)
    text_encoder = CLIPTextModel.from_pretrained(
        spec.source, subfolder="text_encoder", use_safetensors=True, dtype=dtype, **where
    )
    tokenizer = CLIPTokenizer.from_pretrained(spec.source, subfolder="tokenizer", **where)
    for network in (unet, vae, text_encoder):
        network.to(device).eval().requires_grad_(False)
    if int(unet.config.in_channels) not in (vae.config.latent_channels, 2 * vae.config.latent_channels + 1):
        raise ModelLoadError(f"model {spec.name!r}: a UNet of {unet.config.in_channels} input channels is not known")
    schedule_config: dict[str, Any] = DDIMScheduler.load_config(spec.source, subfolder="scheduler", **where)
    samplers = DiffusionSchedulerFactory(schedule_config)
    return LoadedModel(
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
        controlnets={name: _load_controlnet(spec, name, device, dtype) for name in spec.controlnets},
    )


def _load_controlnet(spec: ModelSpec, name: str, device: torch.device, dtype: torch.dtype) -> ControlNet:
    row = spec.controlnets[name]
    wanted = ControlNetSpec(row) if isinstance(row, str) else row
    local = Path(wanted.source).is_dir()
    title = f"model {spec.name!r}: its ControlNet {name!r}"
    if not local and wanted.revision is None:
        raise ModelLoadError(f"{title}: {wanted.source!r} is not a local folder and has no pinned revision")
    where: dict[str, Any] = {} if local else {"revision": wanted.revision}
    try:
        network = ControlNetModel.from_pretrained(wanted.source, use_safetensors=True, torch_dtype=dtype, **where)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{title} could not be loaded from {wanted.source!r}: {_CONTROLNET_FILES}") from error
    network.to(device).eval().requires_grad_(False)
    return ControlNet(name, network)


def _refused(spec: ModelSpec, samplers: DiffusionSchedulerFactory) -> Mapping[str, EngineError]:
    """The samplers whose tables do not reproduce diffusers with this model's scheduler config."""
    refused = samplers.check()
    for name, error in refused.items():
        log.warning("model %s: sampler %s is refused: %s", spec.name, name, error.message)
    return refused

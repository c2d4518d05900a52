"""Loads the networks of a served model for training: diffusers' and transformers' classes, checked as for serving."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from deployments.engine.checkpoints.library_networks import AutoencoderKL, UNet2DConditionModel
from deployments.engine.checkpoints.native_size import describe_single_file, with_native_size
from deployments.engine.checkpoints.networks import load_network
from deployments.engine.checkpoints.pipeline_index import check_pipeline, has_zeros_for_no_prompt, names_part
from deployments.engine.checkpoints.vocabulary import check_vocabulary, load_tokenizer
from deployments.engine.cuda.settings import configure_cuda
from deployments.engine.models.component_fit import check_parts
from deployments.engine.models.components import fingerprint, is_half
from deployments.engine.models.hub import locate
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import INDEX, PARTS, SECOND_PARTS, ModelSpec, as_part
from deployments.engine.sampling.checkpoint_scheduler import read_scheduler

_MERGES: Final = "merges.txt"
_TEXT_ENCODERS: Final = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
_TOKENIZERS: Final = ("tokenizer", "tokenizer_2")


@dataclass(frozen=True, eq=False)
class BaseNetworks:
    """A model's `unet` and `vae`, its `text_encoders`, one or two, with their `tokenizers`, frozen, on one device.

    `says_nothing_as_zeros`: without a negative prompt a model with two sees zeros, not the empty text. `sampler` makes
    its pictures (DPM-Solver++ of second order), and has its training's betas. `fingerprint` identifies the UNet's
    weights, `digest` all parts.
    """

    spec: ModelSpec
    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    says_nothing_as_zeros: bool
    sampler: DPMSolverMultistepScheduler
    fingerprint: str
    digest: str

    @property
    def signal(self) -> Tensor:
        """The share of the picture in the variance of each training timestep [T] (the cumulative alphas)."""
        levels: Tensor = self.sampler.alphas_cumprod
        return levels.to(torch.float32)

    @property
    def predicts_v(self) -> bool:
        """True if the UNet predicts v (Salimans & Ho 2022), not the noise."""
        return str(self.sampler.config.prediction_type) == "v_prediction"

    @property
    def factor(self) -> int:
        """Pixels per latent, in each direction."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def has_two_texts(self) -> bool:
        """True if it is of Stable Diffusion XL's kind."""
        return len(self.text_encoders) > 1

    @property
    def text_width(self) -> int:
        """How wide the text is that the UNet reads, which tells families apart."""
        return int(self.unet.config.cross_attention_dim)


def load_base(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> BaseNetworks:
    """Loads `spec` onto `device`. Raises ModelLoadError, which says what is missing, or cannot be trained on.

    The networks stay as the libraries make them: what serving puts into theirs on CUDA has no gradients. Those of
    Stable Diffusion XL's kind keep few of a step's numbers, and compute the rest anew for its gradients.
    """
    title = f"model {spec.name!r}"
    if describe_single_file(spec) is not None:
        raise ModelLoadError(f"{title} is one file; make a folder of it with `darkroom convert` to train on it")
    half = is_half(dtype)
    folders = _locate_parts(title, spec, half=half)
    if device.type == "cuda":
        configure_cuda()

    def load(name: str, kind: Any) -> Any:
        return load_network(f"{title}: its {name}", spec.source, folders[name], kind, dtype, device, half=half)

    unet, vae = load("unet", UNet2DConditionModel), load("vae", AutoencoderKL)
    texts = [load(name, kind) for name, kind in _TEXT_ENCODERS.items() if name in folders]
    tokenizers = [load_tokenizer(f"{title}: its {name}", folders[name]) for name in _TOKENIZERS if name in folders]
    if len(texts) > 1:
        # Six rows of 1024 x 1024 pixels want more than most cards have.
        unet.enable_gradient_checkpointing()
    # A step of the demo family is a sixth faster so, on two cores, and matrix units of GPUs want it as well.
    unet.to(memory_format=torch.channels_last)
    check_parts(title, unet, vae, texts)
    for name, tokenizer, text in zip(_TOKENIZERS, tokenizers, texts, strict=False):
        check_vocabulary(f"{title}: its {name}", tokenizer, text.config)
    if unet.config.in_channels != vae.config.latent_channels:
        raise ModelLoadError(f"{title} is for inpainting; train on the model that it was made from")
    index = folders["scheduler"].parent / INDEX
    saved = read_scheduler(title, folders["scheduler"], index)
    sampler = DPMSolverMultistepScheduler.from_config(dict(saved.config))
    if sampler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ModelLoadError(f"{title} predicts {sampler.config.prediction_type!r}, which is not trained here")
    fingerprints = {name: fingerprint(folder) for name, folder in folders.items()}
    return BaseNetworks(
        spec=with_native_size(spec),
        unet=unet,
        vae=vae,
        text_encoders=tuple(texts),
        tokenizers=tuple(tokenizers),
        says_nothing_as_zeros=len(texts) > 1 and has_zeros_for_no_prompt(title, index),
        sampler=sampler,
        fingerprint=fingerprints["unet"],
        digest=_digest(fingerprints, [folders[name] / _MERGES for name in _TOKENIZERS if name in folders]),
    )


def _digest(fingerprints: Mapping[str, str], merges: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in merges:
        # A tokenizer's merges are the one file that changes what a network sees, and is neither JSON nor safetensors.
        digest.update(file.read_bytes() if file.is_file() else b"")
    for name in sorted(fingerprints):
        digest.update(f"{name}/{fingerprints[name]}".encode())
    return digest.hexdigest()


def _locate_parts(title: str, spec: ModelSpec, *, half: bool) -> dict[str, Path]:
    own = [name for name in PARTS if name not in spec.parts]
    root = locate(title, spec.source, spec.revision, own, half=half)
    has_two_texts = any(name in spec.parts or names_part(title, root, name) for name in SECOND_PARTS)
    own = [name for name in own if has_two_texts or name not in SECOND_PARTS]
    check_pipeline(title, root, own)
    folders = {name: root / name for name in own}
    for name, given in spec.parts.items():
        found = as_part(given)
        folders[name] = locate(f"{title}: its {name}", found.source, found.revision, ("",), half=half)
    if absent := [name for name, folder in folders.items() if not folder.is_dir()]:
        raise ModelLoadError(f"{title}: there is no {absent[0]}/ in diffusers' layout")
    return folders

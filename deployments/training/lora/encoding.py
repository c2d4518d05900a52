"""Pictures and captions as the UNet takes them, encoded once: no VAE and no text encoder runs while it learns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deployments.engine.conditioning.resizing import resize
from deployments.training.lora.base_networks import BaseNetworks
from deployments.training.lora.dataset import FIELD, Example
from deployments.uploads.image_files import decode

_CHUNK_PIXELS = 4 * 512 * 512


@torch.no_grad()
def encode_prompts(base: BaseNetworks, prompts: Sequence[str]) -> Tensor:
    """Returns the hidden states [N, 77, C] of prompts, as diffusers' pipelines encode them; cut at 77 tokens."""
    length = min(base.tokenizer.model_max_length, int(base.text_encoder.config.max_position_embeddings))
    encoded = base.tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    # As in the pipelines: a mask is only given where the text encoder's own config asks for one.
    mask = encoded.attention_mask if getattr(base.text_encoder.config, "use_attention_mask", False) else None
    ids = encoded.input_ids.to(base.text_encoder.device)
    hidden: Tensor = base.text_encoder(ids, attention_mask=None if mask is None else mask.to(ids.device))[0]
    return hidden


@torch.no_grad()
def encode_pictures(base: BaseNetworks, pictures: Sequence[Image.Image]) -> Tensor:
    """Returns the latents [N, 4, h, w] of RGB pictures of one size, as the UNet sees them: the mean of what the VAE
    believes them to be, scaled.
    """
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    pixels = pixels.permute(0, 3, 1, 2).to(base.vae.device, base.vae.dtype) / 127.5 - 1
    chunk = max(1, _CHUNK_PIXELS // pixels[0, 0].numel())
    means = [base.vae.encode(part).latent_dist.mean for part in pixels.split(chunk)]
    scaled: Tensor = torch.cat(means) * float(base.vae.config.scaling_factor)
    return scaled


def read_pictures(examples: Sequence[Example], height: int, width: int) -> list[Image.Image]:
    """Returns the examples' pictures in that size: scaled to cover it, and cropped in the middle.

    Raises InvalidParameter for one that cannot be decoded.
    """
    return [resize(decode(example.data, FIELD), width, height, "cover") for example in examples]

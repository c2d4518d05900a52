"""The pictures that the UNet learns from, already encoded: a pool that grows while training goes on.

Encoding a drawing costs as much as several training rows, so each is used many times; a few new ones every iteration
keep the network from learning the pool by heart.
"""

from __future__ import annotations

import random
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from deployments.training.demo.captions import EMPTY_SHARE, sample
from deployments.training.demo.models import VAE_FACTOR
from deployments.training.demo.train_text import tokenize
from deployments.training.demo.world import draw

_CHUNK_PIXELS: Final = 16 * 128 * 128


class Encoders:
    """The finished VAE and text encoder, frozen: scenes in, tensors out."""

    def __init__(self, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.vae, self.text, self.tokenizer = vae.eval(), text.eval(), tokenizer
        self.nothing = self.words([""])[0]

    @torch.no_grad()
    def words(self, texts: list[str]) -> Tensor:
        """Texts to hidden states [B, 77, 128]."""
        ids = tokenize(self.tokenizer, texts).to(self.text.device)
        hidden: Tensor = self.text(input_ids=ids).last_hidden_state
        return hidden

    @torch.no_grad()
    def pictures(self, images: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]) -> Tensor:
        """Images [H, W, 3] of one size to scaled latents [B, 4, H/8, W/8]."""
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        chunk = max(1, _CHUNK_PIXELS // pixels[0, 0].numel())
        parts = [self.vae.encode(part.to(self.vae.device)).latent_dist.mean for part in pixels.split(chunk)]
        factor: float = self.vae.config.scaling_factor
        return torch.cat(parts) * factor


class Pool:
    """Latents [N, 4, h, w] and caption states [N, 77, 128] of one picture size; at `limit` the oldest make room."""

    def __init__(self, encoders: Encoders, size: int, first: int, limit: int, seed: int) -> None:
        self.encoders, self.size, self.limit = encoders, size, limit
        self._rng = random.Random(f"{size}/{seed}")
        side = size // VAE_FACTOR
        device = encoders.vae.device
        self._latents = torch.empty(limit, 4, side, side, device=device)
        self._words = torch.empty(limit, *encoders.nothing.shape, device=device, dtype=torch.float16)
        self._made = 0
        self.grow(first)

    def grow(self, count: int) -> None:
        """Draw, describe and encode `count` more scenes."""
        for begin in range(0, count, 256):
            pairs = [sample(self._rng) for _ in range(min(256, count - begin))]
            slots = [(self._made + i) % self.limit for i in range(len(pairs))]
            self._latents[slots] = self.encoders.pictures([draw(scene, self.size) for scene, _ in pairs])
            self._words[slots] = self.encoders.words([caption.text for _, caption in pairs]).half()
            self._made += len(pairs)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Random rows: latents [B, 4, h, w] and caption states [B, 77, 128], some of them of the empty caption."""
        rows = torch.randint(min(self._made, self.limit), (count,))
        words = self._words[rows].float()
        words[torch.rand(count) < EMPTY_SHARE * 0.7] = self.encoders.nothing
        return self._latents[rows], words

"""What the denoisers learn from, already encoded: a pool that grows while training goes on.

Encoding a drawing costs as much as several training rows, so each is used many times; a few new ones every iteration
keep the network from learning the pool by heart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from deployments.training.demo.learning.lessons import Lesson, Teach
from deployments.training.demo.models import VAE_FACTOR
from deployments.training.demo.stages.train_text import tokenize
from deployments.training.demo.world.captions import EMPTY_SHARE

_CHUNK_PIXELS: Final = 16 * 128 * 128
_CHUNK: Final = 256


@dataclass(frozen=True)
class LatentBatch:
    """Rows to learn from: `latents` [B, 4, h, w], caption states `words` [B, 77, C], and, for members that take them,
    `hints` [B, 3, H, W] in [0, 1] and `holes` [B, 5, h, w], a mask and the latents of the picture without its inside.
    """

    latents: Tensor
    words: Tensor
    hints: Tensor | None
    holes: Tensor | None


class Encoders:
    """The finished VAE and text encoder, frozen: lessons in, tensors out."""

    def __init__(self, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.vae, self.text, self.tokenizer = vae.eval(), text.eval(), tokenizer
        self.nothing = self.words([""])[0]

    @torch.no_grad()
    def words(self, texts: list[str]) -> Tensor:
        """Texts to hidden states [B, 77, C]."""
        ids = tokenize(self.tokenizer, texts).to(self.text.device)
        hidden: Tensor = self.text(input_ids=ids).last_hidden_state
        return hidden

    @torch.no_grad()
    def pictures(self, images: list[NDArray[np.uint8]], masks: list[NDArray[np.uint8]] | None = None) -> Tensor:
        """Images [H, W, 3] of one size to scaled latents [B, 4, H/8, W/8]; what lies under a mask becomes grey."""
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if masks is not None:
            pixels *= torch.from_numpy(np.stack(masks))[:, None] < 128
        chunk = max(1, _CHUNK_PIXELS // pixels[0, 0].numel())
        parts = [self.vae.encode(part.to(self.vae.device)).latent_dist.mean for part in pixels.split(chunk)]
        factor: float = self.vae.config.scaling_factor
        return torch.cat(parts) * factor

    def holes(self, images: list[NDArray[np.uint8]], masks: list[NDArray[np.uint8]]) -> Tensor:
        """What a 9-channel UNet sees beside the latents [B, 5, h, w], as diffusers' inpainting pipeline makes it."""
        covered = self.pictures(images, masks)
        small = functional.interpolate(torch.from_numpy(np.stack(masks))[:, None].float(), covered.shape[-2:])
        return torch.cat([(small > 127).float().to(covered.device), covered], dim=1)


class Pool:
    """Encoded lessons of one picture size; at `limit` the oldest make room."""

    def __init__(self, encoders: Encoders, teach: Teach, size: int, first: int, limit: int, seed: int) -> None:
        self.encoders, self.teach, self.size, self.limit = encoders, teach, size, limit
        assert size % VAE_FACTOR == 0
        self._rng = random.Random(f"{size}/{seed}")
        self._kept: dict[str, Tensor] = {}
        self._made = 0
        self.grow(first)

    def grow(self, count: int) -> None:
        """Draw, describe and encode `count` more lessons."""
        for begin in range(0, count, _CHUNK):
            lessons = [self.teach(self._rng, self.size) for _ in range(min(_CHUNK, count - begin))]
            slots = [(self._made + i) % self.limit for i in range(len(lessons))]
            for name, encoded in self._encode(lessons).items():
                if name not in self._kept:
                    self._kept[name] = encoded.new_empty(self.limit, *encoded.shape[1:])
                self._kept[name][slots] = encoded
            self._made += len(lessons)

    def batch(self, count: int) -> LatentBatch:
        """Random lessons, some of them with an empty caption."""
        rows = torch.randint(min(self._made, self.limit), (count,))
        words = self._kept["words"][rows].float()
        words[torch.rand(count) < EMPTY_SHARE * 0.7] = self.encoders.nothing
        hints = self._kept["hints"][rows].float() / 255 if "hints" in self._kept else None
        holes = self._kept["holes"][rows] if "holes" in self._kept else None
        return LatentBatch(self._kept["latents"][rows], words, hints, holes)

    def _encode(self, lessons: list[Lesson]) -> dict[str, Tensor]:
        images = [lesson.image for lesson in lessons]
        masks = [lesson.mask for lesson in lessons if lesson.mask is not None]
        hints = [lesson.hint for lesson in lessons if lesson.hint is not None]
        encoded = {
            "latents": self.encoders.pictures(images),
            "words": self.encoders.words([lesson.text for lesson in lessons]).half(),
        }
        if masks:
            encoded["holes"] = self.encoders.holes(images, masks)
        if hints:
            encoded["hints"] = torch.from_numpy(np.stack(hints)).permute(0, 3, 1, 2).to(encoded["latents"].device)
        return encoded

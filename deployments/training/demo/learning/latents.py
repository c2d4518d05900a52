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
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from deployments.training.demo.learning.lessons import Lesson, Teach
from deployments.training.demo.learning.looks import ImageReader
from deployments.training.demo.models import VAE_FACTOR
from deployments.training.demo.stages.train_text import tokenize
from deployments.training.demo.world.captions import EMPTY_SHARE

_CHUNK_PIXELS: Final = 16 * 128 * 128
_CHUNK: Final = 256
_UNSEEN_SHARE: Final = 0.1  # of references; half of them without words either, as guidance asks
_POOLED_SHARE: Final = 0.05  # of captions: the pooled embedding alone, or nothing would be learnt of it


@dataclass(frozen=True)
class LatentBatch:
    """Rows to learn from: `latents` [B, 4, h, w], caption states `words` [B, 77, C], and, for members that take them,
    `hints` [B, 3, H, W] in [0, 1], `holes` [B, 5, h, w], a mask and the latents of the picture without its inside,
    `references` [B, D], embeddings of reference pictures, zeros where there is none, and SDXL's `pooled` [B, D], one
    embedding for a whole caption, and `sizes` [B, 6].
    """

    latents: Tensor
    words: Tensor
    hints: Tensor | None
    holes: Tensor | None
    references: Tensor | None = None
    pooled: Tensor | None = None
    sizes: Tensor | None = None


def both_texts(first: CLIPTextModel, second: CLIPTextModelWithProjection, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What SDXL's UNet sees of token ids [B, 77]: either encoder's states before the last layer, side by side
    [B, 77, C], and the second one's projection [B, D].
    """
    answers = [encoder(input_ids=ids, output_hidden_states=True) for encoder in (first, second)]
    return torch.cat([answer.hidden_states[-2] for answer in answers], dim=-1), answers[1].text_embeds


class Encoders:
    """The finished VAE, text encoder and, where there are any, image encoder and SDXL's second text encoder, frozen:
    lessons in, tensors out.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        reader: ImageReader | None = None,
        second: CLIPTextModelWithProjection | None = None,
    ) -> None:
        self.vae, self.text, self.tokenizer = vae.eval(), text.eval(), tokenizer
        self.reader, self.second = reader, second
        empty = self.say([""])["words"][0]
        self.nothing = empty if second is None else torch.zeros_like(empty)

    @torch.no_grad()
    def say(self, texts: list[str]) -> dict[str, Tensor]:
        """Texts to hidden states [B, 77, C], the `words`, and, of two encoders, to a `pooled` embedding [B, D]."""
        ids = tokenize(self.tokenizer, texts).to(self.text.device)
        if self.second is None:
            return {"words": self.text(input_ids=ids).last_hidden_state}
        words, pooled = both_texts(self.text, self.second, ids)
        return {"words": words, "pooled": pooled}

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
        unsaid = torch.rand(count) < EMPTY_SHARE * 0.7
        words[unsaid] = self.encoders.nothing
        pooled = None
        if "pooled" in self._kept:
            pooled = self._kept["pooled"][rows] * ~unsaid[:, None]
            words[torch.rand(count) < _POOLED_SHARE] = self.encoders.nothing
        hints = self._kept["hints"][rows].float() / 255 if "hints" in self._kept else None
        holes = self._kept["holes"][rows] if "holes" in self._kept else None
        references = None
        if "references" in self._kept:
            unseen = torch.rand(count) < _UNSEEN_SHARE
            references = self._kept["references"][rows] * ~unseen[:, None]
            words[unseen & (torch.rand(count) < 0.5)] = self.encoders.nothing
        sizes = self._kept["sizes"][rows] if "sizes" in self._kept else None
        return LatentBatch(self._kept["latents"][rows], words, hints, holes, references, pooled, sizes)

    def _encode(self, lessons: list[Lesson]) -> dict[str, Tensor]:
        images = [lesson.image for lesson in lessons]
        masks = [lesson.mask for lesson in lessons if lesson.mask is not None]
        hints = [lesson.hint for lesson in lessons if lesson.hint is not None]
        sizes = [lesson.sizes for lesson in lessons if lesson.sizes is not None]
        references = [lesson.reference for lesson in lessons if lesson.reference is not None]
        encoded = {
            "latents": self.encoders.pictures(images),
            **self.encoders.say([lesson.text for lesson in lessons]),
        }
        encoded["words"] = encoded["words"].half()
        if masks:
            encoded["holes"] = self.encoders.holes(images, masks)
        if sizes:
            encoded["sizes"] = torch.tensor(sizes, dtype=torch.float32, device=encoded["latents"].device)
        if references and self.encoders.reader is not None:
            encoded["references"] = self.encoders.reader(references)
        if hints:
            encoded["hints"] = torch.from_numpy(np.stack(hints)).permute(0, 3, 1, 2).to(encoded["latents"].device)
        return encoded

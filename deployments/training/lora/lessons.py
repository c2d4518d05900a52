"""What is learnt, encoded once: no VAE and no text encoder runs while the UNet learns.

The pictures and captions, those kept out to measure with, and what is to stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deployments.engine.conditioning.resizing import resize
from deployments.training import checkpoint
from deployments.training.lora.base_networks import BaseNetworks
from deployments.training.lora.dataset import FIELD, Example, dataset_hash, trigger_pattern
from deployments.training.lora.generators import generator_of
from deployments.training.lora.pictures import PictureMaker
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingSettings
from deployments.uploads.image_files import decode

_SPLIT: Final = 1
_PRIOR_STEPS: Final = 12
"""What is to stay need not be beautiful, but like what the model sees when it is served."""

_CHUNK_PIXELS: Final = 4 * 512 * 512
_CHUNK_PROMPTS: Final = 64

Check = Callable[[], None]
"""Is called again and again while something takes long, and may raise."""


@dataclass(frozen=True, eq=False)
class EncodedPictures:
    """`latents` [N, 4, h, w], and of their captions the hidden states `words` [N, 77, C] and, for models with two text
    encoders, the text as a whole, `pooled` [N, P]; P is 0 for others.
    """

    latents: Tensor
    words: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def pick(self, rows: Tensor) -> EncodedPictures:
        """Returns the rows [B] of these numbers."""
        return EncodedPictures(self.latents[rows], self.words[rows], self.pooled[rows])

    def to(self, device: torch.device) -> EncodedPictures:
        """Returns them on a device."""
        return EncodedPictures(self.latents.to(device), self.words.to(device), self.pooled.to(device))


@dataclass(frozen=True, eq=False)
class SizedLessons:
    """Pictures of one size: those that are `learnt`, and the model's own that are to `stay` (perhaps none)."""

    learnt: EncodedPictures
    stay: EncodedPictures

    def to(self, device: torch.device) -> SizedLessons:
        """Returns them on a device."""
        return SizedLessons(self.learnt.to(device), self.stay.to(device))


@dataclass(frozen=True, eq=False)
class Lessons:
    """What is learnt in `whole` size and, before that, in `half` of it, if at all; and what is `kept_out` to measure
    with (perhaps nothing). `captions` are those that are learnt; `digest` identifies all files and captions, and `base`
    the networks that have encoded them, with `factor` pixels to a latent in each direction.
    """

    whole: SizedLessons
    half: SizedLessons | None
    kept_out: EncodedPictures
    captions: tuple[str, ...]
    digest: str
    base: str
    factor: int

    def to(self, device: torch.device) -> Lessons:
        """Returns them on a device."""
        half = None if self.half is None else self.half.to(device)
        return replace(self, whole=self.whole.to(device), half=half, kept_out=self.kept_out.to(device))


def prepare_lessons(
    base: BaseNetworks,
    examples: Sequence[Example],
    settings: TrainingSettings,
    size: tuple[int, int],
    run: RunFolder,
    check: Check,
) -> Lessons:
    """Encodes the examples at `size` (height, width), and has the model make the pictures that are to stay.

    Raises InvalidParameter for a picture that cannot be decoded, and what `check` raises.
    """
    order = torch.randperm(len(examples), generator=generator_of(settings.seed, _SPLIT)).tolist()
    out = set(order[: int(settings.validation_share * len(examples))])
    texts = encode_prompts(base, [example.caption for example in examples], check)
    learnt = [index for index in range(len(examples)) if index not in out]

    def encode(height: int, width: int) -> EncodedPictures:
        return EncodedPictures(encode_pictures(base, read_pictures(examples, height, width, check), check), *texts)

    def prepare(pictures: EncodedPictures, height: int, width: int) -> SizedLessons:
        stay = _make_what_stays(base, examples, settings, (height, width), run, check)
        return SizedLessons(pictures.pick(torch.tensor(learnt)), stay)

    whole, (height, width) = encode(*size), _half(size, base.factor)
    return Lessons(
        whole=prepare(whole, *size),
        half=prepare(encode(height, width), height, width) if settings.half_size_share else None,
        kept_out=whole.pick(torch.tensor(sorted(out), dtype=torch.long)),
        captions=tuple(examples[index].caption for index in learnt),
        digest=dataset_hash(examples),
        base=base.digest,
        factor=base.factor,
    )


@torch.no_grad()
def encode_prompts(base: BaseNetworks, prompts: Sequence[str], check: Check) -> tuple[Tensor, Tensor]:
    """Returns the hidden states [N, 77, C] of prompts and the pooled texts [N, P], as diffusers' pipelines encode them;
    cut at 77 tokens. P is 0 for models with one text encoder.
    """
    found = []
    for begin in range(0, len(prompts), _CHUNK_PROMPTS):
        check()
        found.append(_encode_texts(base, list(prompts[begin : begin + _CHUNK_PROMPTS])))
    words, pooled = (torch.cat(parts) for parts in zip(*found, strict=True))
    if base.says_nothing_as_zeros:
        for row, prompt in enumerate(prompts):
            if not prompt:
                words[row], pooled[row] = 0, 0
    return words, pooled


def _encode_texts(base: BaseNetworks, texts: list[str]) -> tuple[Tensor, Tensor]:
    answers = [
        _ask(encoder, tokenizer, texts) for encoder, tokenizer in zip(base.text_encoders, base.tokenizers, strict=True)
    ]
    if not base.has_two_texts:
        words: Tensor = answers[0][0]
        return words, words.new_empty((len(texts), 0))
    # Of both, what the last layer but one says, without the final norm; and the second one's projection.
    return torch.cat([answer.hidden_states[-2] for answer in answers], dim=-1), answers[1][0]


def _ask(encoder: Any, tokenizer: Any, texts: list[str]) -> Any:
    length = min(tokenizer.model_max_length, int(encoder.config.max_position_embeddings))
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    encoded = encoded.to(encoder.device)
    # As in the pipelines: a mask is only given where the text encoder's own config asks for one.
    mask = encoded.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    return encoder(encoded.input_ids, attention_mask=mask, output_hidden_states=True)


@torch.no_grad()
def encode_pictures(base: BaseNetworks, pictures: Sequence[Image.Image], check: Check) -> Tensor:
    """Returns the latents [N, 4, h, w] of RGB pictures of one size, as the UNet sees them: the mean of what the VAE
    believes them to be, scaled.
    """
    chunk = max(1, _CHUNK_PIXELS // (pictures[0].width * pictures[0].height))
    means, dtype = [], base.vae.dtype
    upcasts = base.has_two_texts and dtype == torch.float16 and base.vae.config.force_upcast
    if upcasts:
        # The pipelines do so for decoding, by themselves.
        base.vae.to(torch.float32)
    for begin in range(0, len(pictures), chunk):
        check()
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures[begin : begin + chunk]]))
        pixels = pixels.permute(0, 3, 1, 2).to(base.vae.device, base.vae.dtype) / 127.5 - 1
        means.append(base.vae.encode(pixels).latent_dist.mean)
    if upcasts:
        base.vae.to(dtype)
    scaled: Tensor = torch.cat(means) * float(base.vae.config.scaling_factor)
    return scaled.to(dtype)


def read_pictures(examples: Sequence[Example], height: int, width: int, check: Check) -> list[Image.Image]:
    """Returns the examples' pictures in that size: scaled to cover it, and cropped in the middle.

    Raises InvalidParameter for one that cannot be decoded.
    """
    pictures = []
    for example in examples:
        check()
        pictures.append(resize(decode(example.data, FIELD), width, height, "cover"))
    return pictures


def _half(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Returns half the size, in whole pairs of latents, as every UNet takes them."""
    height, width = (max(2 * factor, side // 2 // (2 * factor) * 2 * factor) for side in size)
    return height, width


def _make_what_stays(
    base: BaseNetworks,
    examples: Sequence[Example],
    settings: TrainingSettings,
    size: tuple[int, int],
    run: RunFolder,
    check: Check,
) -> EncodedPictures:
    prompts = _prior_prompts(examples, settings)
    if not prompts:
        return EncodedPictures(torch.empty(0), torch.empty(0), torch.empty(0))
    words, pooled = encode_prompts(base, prompts, check)
    key = hashlib.sha256("\0".join([base.digest, str(settings.seed), str(size), *prompts]).encode()).hexdigest()
    file = run.prior_pictures(*size)
    kept = checkpoint.load(file)
    if kept is None or kept["key"] != key:
        seeds = [settings.seed + number for number in range(len(prompts))]
        maker = PictureMaker(base, *size, settings.guidance, check, _PRIOR_STEPS)
        latents = encode_pictures(base, maker.make(prompts, seeds), check)
        checkpoint.save(file, key=key, latents=latents.cpu())
    else:
        latents = kept["latents"].to(words)
    return EncodedPictures(latents, words, pooled)


def _prior_prompts(examples: Sequence[Example], settings: TrainingSettings) -> list[str]:
    """Returns a prompt per picture that is to stay; every eighth is empty, as guidance needs it to be what it was."""
    if not (settings.prior_pictures and settings.prior_batch_size and settings.prior_weight):
        return []
    named = list(settings.prior_prompts) or [_without(example.caption, settings.trigger) for example in examples]
    return ["" if number % 8 == 7 else named[number % len(named)] for number in range(settings.prior_pictures)]


def _without(caption: str, trigger: str) -> str:
    rest = trigger_pattern(trigger).sub("", caption)
    return " ".join(rest.replace(" ,", ",").split()).strip(", ")

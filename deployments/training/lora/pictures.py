"""Pictures of a model while it learns: what it makes before, on the way, and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from PIL import Image

from deployments.engine.checkpoints.library_loading import load_exclusively
from deployments.training.lora.base_networks import BaseNetworks

STEPS: Final = 20
_BATCH_PIXELS: Final = 4 * 512 * 512


class PictureMaker:
    """Makes pictures with diffusers' own pipeline of a base model's networks, as they are at that moment."""

    def __init__(
        self,
        base: BaseNetworks,
        height: int,
        width: int,
        guidance: float,
        check: Callable[[], None],
        steps: int = STEPS,
    ) -> None:
        """Pictures of `height` x `width` pixels, by `steps` steps of DPM-Solver++ with that `guidance`.

        `check` is called before each batch, and may raise.
        """
        self._size = {"height": height, "width": width}
        self._settings = {"num_inference_steps": steps, "guidance_scale": guidance}
        self._check = check
        self.batch: Final = max(1, _BATCH_PIXELS // (height * width))
        with load_exclusively():
            self._pipeline = _make_pipeline(base)
        self._pipeline.set_progress_bar_config(disable=True)

    def make(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Returns a picture per prompt and seed, `batch` at a time; noise is drawn on the CPU, so a seed means the same
        anywhere.
        """
        made: list[Image.Image] = []
        for begin in range(0, len(prompts), self.batch):
            self._check()
            part = slice(begin, begin + self.batch)
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[part]]
            with torch.no_grad():
                made += self._pipeline(list(prompts[part]), generator=generators, **self._size, **self._settings).images
        return made


def _make_pipeline(base: BaseNetworks) -> Any:
    # Imports half of the library, which warns of what it does not find.
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    networks = {"vae": base.vae, "unet": base.unet, "scheduler": base.sampler}
    for end, text_encoder, tokenizer in zip(("", "_2"), base.text_encoders, base.tokenizers, strict=False):
        networks |= {f"text_encoder{end}": text_encoder, f"tokenizer{end}": tokenizer}
    if base.has_two_texts:
        zeros = base.says_nothing_as_zeros
        return StableDiffusionXLPipeline(**networks, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
    return StableDiffusionPipeline(
        **networks, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )

"""Does demo-style take colours and look from a reference picture? Pictures for captions that name the product alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image as Pictures

from deployments.training.demo.adapter import ENCODER, FILE
from deployments.training.demo.export import SHIPPED
from deployments.training.demo.judging.evaluate import GUIDANCE, STEPS, Trial, held_out, load
from deployments.training.demo.judging.judge import judge
from deployments.training.demo.learning.lessons import other_product
from deployments.training.demo.models import NATIVE
from deployments.training.demo.world.captions import Caption, describe
from deployments.training.demo.world.world import Image, draw

_ASKED: Final = frozenset(("product", "colour", "background", "style"))


def load_style(folder: Path) -> StableDiffusionPipeline:
    """demo-sd with the adapter in `folder`, loaded by diffusers' own means."""
    pipeline = load(SHIPPED)
    pipeline.load_ip_adapter(str(folder), subfolder="", weight_name=FILE, image_encoder_folder=ENCODER)
    return pipeline


def styled_trials(pipeline: StableDiffusionPipeline, count: int, scale: float = 1.0) -> Iterator[Trial]:
    """Picture after picture for held-out combinations: the words name a product, and another product's drawing gives
    colours and look, as loudly as `scale` says.
    """
    pipeline.set_ip_adapter_scale(scale)
    rng = random.Random("evaluation/style")
    for seed, (scene, _) in enumerate(held_out(count, seed=1)):
        reference = draw(other_product(rng, scene), NATIVE)
        caption = Caption(describe(rng, scene, {"product"}), _ASKED)
        image = paint_like(pipeline, caption.text, reference, seed)
        yield Trial(scene, caption, image, judge(image), reference)


def paint_like(pipeline: StableDiffusionPipeline, text: str, reference: Image, seed: int) -> Image:
    """One picture [256, 256, 3] for words and a reference picture [H, W, 3]."""
    picture = pipeline(
        text,
        ip_adapter_image=Pictures.fromarray(reference),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    return np.asarray(picture, dtype=np.uint8)

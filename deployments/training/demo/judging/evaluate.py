"""Does the model draw what it is told? Pictures for held-out captions, judged by a detector that knows no caption."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from deployments.training.demo.judging.judge import Verdict, agrees, judge
from deployments.training.demo.models import NATIVE, device
from deployments.training.demo.world.captions import ATTRIBUTES, Caption, sample
from deployments.training.demo.world.world import Image, Scene

STEPS: Final = 20
GUIDANCE: Final = 6.0
BATCH: Final = 8
COUNTED: Final = ("product", "colour", "background", "position")  # what "all right" means
_ALWAYS: Final = frozenset(("product", "colour", "background"))


@dataclass(frozen=True)
class Trial:
    """One picture [H, W, 3] and what is to be said about it; `caption` holds what was asked for, in words or by a
    `reference` picture.
    """

    scene: Scene
    caption: Caption
    image: Image
    verdict: Verdict | None
    reference: Image | None = None

    @property
    def answers(self) -> dict[str, bool]:
        """For each attribute that the caption promises, whether the picture shows it."""
        return agrees(self.verdict, self.scene, self.caption.promises)

    @property
    def right(self) -> bool:
        """Whether everything that counts, and was promised, is there."""
        return all(right for name, right in self.answers.items() if name in COUNTED)


def held_out(count: int, seed: int = 0) -> list[tuple[Scene, Caption]]:
    """Captions of combinations never trained on; each names product, colour and background, or it would be no test."""
    rng = random.Random(f"evaluation/{seed}")
    pairs: list[tuple[Scene, Caption]] = []
    while len(pairs) < count:
        scene, caption = sample(rng, held_out=True)
        if caption.promises >= _ALWAYS:
            pairs.append((scene, caption))
    return pairs


def load(folder: Path) -> StableDiffusionPipeline:
    """The pipeline in `folder`, in full precision, with the sampler that the evaluation uses (dpmpp_2m)."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device())


def paint(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    size: int = NATIVE,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> list[Image]:
    """One picture [size, size, 3] per prompt; noise is drawn on the CPU, so a seed means the same anywhere."""
    answer = pipeline(
        prompts,
        width=size,
        height=size,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="np",
    )
    return list(np.round(answer.images * 255).astype(np.uint8))


def trials(pipeline: StableDiffusionPipeline, count: int, size: int = NATIVE, seed: int = 0) -> Iterator[Trial]:
    """Picture after picture, judged."""
    pairs = held_out(count, seed)
    for begin in range(0, count, BATCH):
        part = pairs[begin : begin + BATCH]
        images = paint(pipeline, [c.text for _, c in part], list(range(begin, begin + len(part))), size)
        for (scene, caption), image in zip(part, images, strict=True):
            yield Trial(scene, caption, image, judge(image))


def table(done: list[Trial], size: int) -> str:
    """The results in Markdown: how many pictures show an attribute, of those whose captions name it."""
    lines = [f"| {size} x {size} | right | of | share |", "|---|---:|---:|---:|"]
    for name in (*COUNTED, *(name for name in ATTRIBUTES if name not in COUNTED)):
        answers = [trial.answers[name] for trial in done if name in trial.answers]
        lines.append(_line(name if name in COUNTED else f"({name})", sum(answers), len(answers)))
    lines.append(_line("**all right**", sum(trial.right for trial in done), len(done)))
    return "\n".join(lines)


def _line(name: str, right: int, count: int) -> str:
    share = f"{100 * right / count:.1f} %" if count else "-"
    return f"| {name} | {right} | {count} | {share} |"

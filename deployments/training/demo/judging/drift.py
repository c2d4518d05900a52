"""Prompts of the demo world whose pictures are to stay as they are while one of its models learns something else."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
from PIL import Image

from deployments.training.demo.judging.evaluate import COUNTED, held_out
from deployments.training.demo.judging.judge import agrees, judge
from deployments.training.demo.world.captions import Caption
from deployments.training.demo.world.world import Scene
from deployments.training.lora.evaluation import JudgedPrompt

COUNT: Final = 40


def demo_judges(count: int = COUNT, seed: int = 0) -> list[JudgedPrompt]:
    """Returns `count` prompts that no training has seen, with what judges their pictures: product, colours, place."""
    return [JudgedPrompt(caption.text, partial(_is_right, scene, caption)) for scene, caption in held_out(count, seed)]


def _is_right(scene: Scene, caption: Caption, picture: Image.Image) -> bool:
    answers = agrees(judge(np.asarray(picture.convert("RGB"))), scene, caption.promises)
    return all(right for name, right in answers.items() if name in COUNTED)

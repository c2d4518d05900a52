"""What a LoRA has learnt, and what else it has changed: pictures with it and without, compared and judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deployments.training.lora.adapter_layers import without_lora
from deployments.training.lora.pictures import PictureMaker
from deployments.training.lora.run_folder import replace_text, replaced

_SEEDS: Final = 1000
"""Far from those of samples."""
_OTHER_SEED: Final = 500_000
_SIDE: Final = 160
_GAP: Final = 6
_LINE: Final = 14

UNRELATED: Final = (
    "a photo of a dog in a park",
    "a red car in front of a house",
    "a bowl of fruit on a wooden table",
    "portrait of a woman with a hat",
    "mountains behind a lake at sunrise",
    "a street in a city at night",
    "an oil painting of a ship at sea",
    "a child with a balloon",
)
"""Prompts for models of everything; those of the demo world have their own."""


@dataclass(frozen=True)
class JudgedPrompt:
    """A prompt, and what says whether a picture shows what it asks for; None where nothing can."""

    prompt: str
    is_right: Callable[[Image.Image], bool] | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How pictures with the LoRA differ from those without it.

    `drift` is of unrelated prompts: the mean difference between the pictures with and without it, as a share of the
    whole range of colours. `other_seed` is the same between the pictures of two seeds, to compare with, and `learnt`
    that of the prompts with the trigger. Where pictures can be judged, `right_before` and `right_after` are the shares
    of the unrelated ones that show what was asked for, and `trigger_right` that of those with the trigger.
    """

    drift: float | None
    other_seed: float | None
    learnt: float | None
    pictures: int
    right_before: float | None = None
    right_after: float | None = None
    trigger_right: float | None = None
    prompts: tuple[str, ...] = field(default=())

    @property
    def lost_points(self) -> float | None:
        """How many of a hundred unrelated pictures are no longer right; below 0 if more are. None if none is judged."""
        if self.right_before is None or self.right_after is None:
            return None
        return 100 * (self.right_before - self.right_after)

    def to_json(self) -> dict[str, Any]:
        """Returns it with the points that were lost."""
        return asdict(self) | {"lost_points": self.lost_points, "prompts": list(self.prompts)}


def evaluate(
    unet: Any, maker: PictureMaker, mine: Sequence[JudgedPrompt], unrelated: Sequence[JudgedPrompt], sheet: Path
) -> Evaluation:
    """Makes and judges pictures of prompts with the trigger, `mine`, and of `unrelated` ones, with the LoRA in `unet`
    and without; writes a sheet of them as PNG.
    """
    prompts = [each.prompt for each in (*mine, *unrelated)]
    cut = len(mine)
    seeds = [_SEEDS + number for number in range(len(prompts))]
    after = maker.make(prompts, seeds)
    with without_lora(unet):
        before = maker.make(prompts, seeds)
        other = maker.make(prompts[cut:], [seed + _OTHER_SEED for seed in seeds[cut:]])
    write_sheet(sheet, prompts, before, after)
    return Evaluation(
        drift=_mean_difference(before[cut:], after[cut:]),
        other_seed=_mean_difference(before[cut:], other),
        learnt=_mean_difference(before[:cut], after[:cut]),
        pictures=len(prompts),
        right_before=_share_right(unrelated, before[cut:]),
        right_after=_share_right(unrelated, after[cut:]),
        trigger_right=_share_right(mine, after[:cut]),
        prompts=tuple(prompts),
    )


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Writes the scores as JSON."""
    replace_text(path, json.dumps(evaluation.to_json(), indent=2))


def _mean_difference(some: Sequence[Image.Image], others: Sequence[Image.Image]) -> float | None:
    """Returns the mean difference of pictures' channels, 0 to 1; None if there are no pictures."""
    found = [
        np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean() / 255
        for one, other in zip(some, others, strict=True)
    ]
    return round(float(np.mean(found)), 5) if found else None


def _share_right(asked: Sequence[JudgedPrompt], pictures: Sequence[Image.Image]) -> float | None:
    judged = [
        each.is_right(picture) for each, picture in zip(asked, pictures, strict=True) if each.is_right is not None
    ]
    return round(sum(judged) / len(judged), 4) if judged else None


def write_sheet(
    path: Path, prompts: Sequence[str], before: Sequence[Image.Image], after: Sequence[Image.Image], columns: int = 4
) -> None:
    """Writes pairs of pictures, before and after, with their prompts below, as PNG."""
    width, height = 2 * _SIDE + 3 * _GAP, _SIDE + 3 * _LINE
    rows = -(-len(prompts) // columns)
    sheet = Image.new("RGB", (columns * width, max(1, rows) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for number, (prompt, *pair) in enumerate(zip(prompts, before, after, strict=True)):
        left, top = (number % columns) * width + _GAP, (number // columns) * height + _GAP
        for place, picture in enumerate(pair):
            small = picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (left + place * (_SIDE + _GAP), top))
        words = prompt.encode("latin-1", "replace").decode("latin-1")
        pen.text((left, top + _SIDE + 2), words[:56], fill="black", font=font)
    with replaced(path) as neighbour:
        sheet.save(neighbour, format="PNG", optimize=True)

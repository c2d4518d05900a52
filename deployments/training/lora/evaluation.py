"""What a LoRA has learnt, and what else it has changed: pictures with it and without, compared and judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deployments.training.lora.learning.adapter_layers import without_lora
from deployments.training.lora.pictures import PictureMaker
from deployments.whole_files import replace_text, replaced

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
    of the unrelated ones that show what was asked for, and `trigger_right` that of those with the trigger. `left_out`
    prompts were not judged, for lack of time.
    """

    drift: float | None
    other_seed: float | None
    learnt: float | None
    pictures: int
    right_before: float | None = None
    right_after: float | None = None
    trigger_right: float | None = None
    prompts: tuple[str, ...] = field(default=())
    left_out: int = 0

    @property
    def lost_points(self) -> float | None:
        """How many of a hundred unrelated pictures are no longer right; below 0 if more are. None if none is judged."""
        if self.right_before is None or self.right_after is None:
            return None
        return 100 * (self.right_before - self.right_after)

    def to_json(self) -> dict[str, Any]:
        """Returns it with the points that were lost."""
        return asdict(self) | {"lost_points": self.lost_points, "prompts": list(self.prompts)}


@dataclass(frozen=True, slots=True)
class _Shown:
    """A prompt, by its `number` among all, and its pictures: of another seed too if it is unrelated."""

    number: int
    asked: JudgedPrompt
    before: Image.Image
    after: Image.Image
    other: Image.Image | None


def evaluate(
    unet: Any,
    maker: PictureMaker,
    mine: Sequence[JudgedPrompt],
    unrelated: Sequence[JudgedPrompt],
    sheet: Path,
    is_over: Callable[[], bool],
) -> Evaluation:
    """Makes and judges pictures of prompts with the trigger, `mine`, and of `unrelated` ones, with the LoRA in `unet`
    and without; writes a sheet of them as PNG.

    Prompts of both kinds take turns. After the first batch it ends when `is_over` says so, with those judged by then.
    """
    count, cut = len(mine) + len(unrelated), len(mine)
    shown: list[_Shown] = []
    numbers = [number for pair in zip_longest(range(cut), range(cut, count)) for number in pair if number is not None]
    for begin in range(0, count, maker.batch):
        if shown and is_over():
            break
        shown += _show(unet, maker, [*mine, *unrelated], cut, numbers[begin : begin + maker.batch])
    shown.sort(key=lambda each: each.number)
    ours, others = ([each for each in shown if (each.other is None) is own] for own in (True, False))
    prompts = [each.asked.prompt for each in shown]
    write_sheet(sheet, prompts, [each.before for each in shown], [each.after for each in shown])
    return Evaluation(
        drift=_mean_difference((each.before, each.after) for each in others),
        other_seed=_mean_difference((each.before, each.other) for each in others),
        learnt=_mean_difference((each.before, each.after) for each in ours),
        pictures=len(shown),
        right_before=_share_right((each.asked, each.before) for each in others),
        right_after=_share_right((each.asked, each.after) for each in others),
        trigger_right=_share_right((each.asked, each.after) for each in ours),
        prompts=tuple(prompts),
        left_out=count - len(shown),
    )


def _show(
    unet: Any, maker: PictureMaker, asked: Sequence[JudgedPrompt], cut: int, numbers: Sequence[int]
) -> Iterator[_Shown]:
    """Yields the prompts of these numbers; those from `cut` on are unrelated."""

    def make(numbers: Sequence[int], first_seed: int) -> list[Image.Image]:
        return maker.make([asked[number].prompt for number in numbers], [first_seed + number for number in numbers])

    unrelated = [number for number in numbers if number >= cut]
    after = make(numbers, _SEEDS)
    with without_lora(unet):
        before = make(numbers, _SEEDS)
        other = dict(zip(unrelated, make(unrelated, _SEEDS + _OTHER_SEED), strict=True))
    for number, one, two in zip(numbers, before, after, strict=True):
        yield _Shown(number, asked[number], one, two, other.get(number))


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Writes the scores as JSON."""
    replace_text(path, json.dumps(evaluation.to_json(), indent=2))


def _mean_difference(pairs: Iterable[tuple[Image.Image, Image.Image | None]]) -> float | None:
    """Returns the mean difference of pictures' channels, 0 to 1; None if there are no pictures."""
    found = [np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean() / 255 for one, other in pairs]
    return round(float(np.mean(found)), 5) if found else None


def _share_right(pictures: Iterable[tuple[JudgedPrompt, Image.Image]]) -> float | None:
    judged = [asked.is_right(picture) for asked, picture in pictures if asked.is_right is not None]
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

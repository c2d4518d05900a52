"""The contact sheet: pictures, the captions asked for, and a frame that says right (green) or wrong (red)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from deployments.training.demo.judging.evaluate import Trial
from deployments.training.demo.judging.evaluate_family import JudgedPicture
from deployments.training.demo.world.world import Image

COLUMNS: Final = 8
ROWS: Final = 6
_PICTURE: Final = 144
_FRAME: Final = 4
_GAP: Final = 8
_TEXT: Final = 44
_WIDTH: Final = 26  # letters per line of a caption
_LINES: Final = 3
_RIGHT: Final = (30, 150, 70)
_WRONG: Final = (210, 30, 40)


def trial_sheet(done: Sequence[Trial], path: Path) -> None:
    """Write the first COLUMNS * ROWS of `done`, not the best ones, to `path` as PNG, each beside its reference."""
    shown = [([] if trial.reference is None else [trial.reference]) + [trial.image] for trial in done]
    entries = [(images, trial.caption.text, trial.right) for images, trial in zip(shown, done, strict=True)]
    _write(entries[: COLUMNS // len(shown[0]) * ROWS], path)


def answer_sheet(done: Sequence[JudgedPicture], path: Path) -> None:
    """The same for answers to hints or holes: what was shown, and the picture."""
    shown = [([_holed(answer), answer.image], answer.case.text, answer.right) for answer in done[: COLUMNS // 2 * ROWS]]
    _write(shown, path)


Entry = tuple[list[Image], str, bool]  # pictures side by side, their caption, whether all is right


def _write(entries: list[Entry], path: Path) -> None:
    beside = len(entries[0][0])
    columns = COLUMNS // beside
    width = beside * _PICTURE + 2 * _FRAME
    rows = -(-len(entries) // columns)
    across, down = width + _GAP, _PICTURE + 2 * _FRAME + _TEXT
    sheet = Pictures.new("RGB", (columns * across + _GAP, rows * down + _GAP), "white")
    for index, entry in enumerate(entries):
        row, column = divmod(index, columns)
        _place(sheet, entry, _GAP + column * across, _GAP + row * down)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)


def _place(sheet: Pictures.Image, entry: Entry, left: int, top: int) -> None:
    pictures, text, right = entry
    pen, height, width = ImageDraw.Draw(sheet), _PICTURE + 2 * _FRAME, len(pictures) * _PICTURE + 2 * _FRAME
    pen.rectangle((left, top, left + width - 1, top + height - 1), fill=_RIGHT if right else _WRONG)
    for index, image in enumerate(pictures):
        picture = Pictures.fromarray(image).resize((_PICTURE, _PICTURE), Pictures.Resampling.LANCZOS)
        sheet.paste(picture, (left + _FRAME + index * _PICTURE, top + _FRAME))
    lines = textwrap.wrap(text, _WIDTH * len(pictures), max_lines=_LINES, placeholder="...")
    pen.multiline_text(
        (left, top + height + 2), "\n".join(lines), fill="black", font=ImageFont.load_default(10), spacing=2
    )


def _holed(answer: JudgedPicture) -> Image:
    """What was shown, its hole filled with stripes."""
    if answer.case.mask is None:
        return answer.case.shown
    rows, columns = np.indices(answer.case.mask.shape)
    stripes = np.where((rows + columns) // 8 % 2 == 0, 90, 200).astype(np.uint8)
    return np.where(answer.case.mask[:, :, None] > 127, stripes[:, :, None], answer.case.shown)

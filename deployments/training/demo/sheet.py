"""The contact sheet: pictures, the captions asked for, and a frame that says right (green) or wrong (red)."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Final

from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from deployments.training.demo.evaluate import Trial

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


def write_sheet(done: list[Trial], path: Path) -> None:
    """Write the first COLUMNS * ROWS of `done`, not the best ones, to `path` as PNG."""
    shown = done[: COLUMNS * ROWS]
    rows = -(-len(shown) // COLUMNS)
    across, down = _PICTURE + 2 * _FRAME + _GAP, _PICTURE + 2 * _FRAME + _TEXT
    sheet = Pictures.new("RGB", (COLUMNS * across + _GAP, rows * down + _GAP), "white")
    for index, trial in enumerate(shown):
        row, column = divmod(index, COLUMNS)
        _place(sheet, trial, _GAP + column * across, _GAP + row * down)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)


def _place(sheet: Pictures.Image, trial: Trial, left: int, top: int) -> None:
    pen, side = ImageDraw.Draw(sheet), _PICTURE + 2 * _FRAME
    pen.rectangle((left, top, left + side - 1, top + side - 1), fill=_RIGHT if trial.right else _WRONG)
    picture = Pictures.fromarray(trial.image).resize((_PICTURE, _PICTURE), Pictures.Resampling.LANCZOS)
    sheet.paste(picture, (left + _FRAME, top + _FRAME))
    lines = textwrap.wrap(trial.caption.text, _WIDTH, max_lines=_LINES, placeholder="...")
    pen.multiline_text(
        (left, top + side + 2), "\n".join(lines), fill="black", font=ImageFont.load_default(10), spacing=2
    )

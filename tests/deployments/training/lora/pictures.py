"""Small drawn pictures for tests of training."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int = 0, width: int = 64, height: int = 64, format: str = "PNG") -> bytes:
    """A picture's file, of smooth colours that depend on `seed`."""
    numbers = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(numbers).resize((width, height), Image.Resampling.BICUBIC).save(file, format=format)
    return file.getvalue()


def write_pictures(folder: Path, count: int = 6) -> Path:
    """Writes so many pictures with captions to `folder`, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"a picture of a {{trigger}}, {number}")
    return folder

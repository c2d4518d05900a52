"""The colours of the demo world: twelve of them, far enough apart that a detector never has to guess."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]

COLOURS: Final[dict[str, Rgb]] = {
    "red": (214, 32, 40),
    "orange": (250, 135, 20),
    "yellow": (252, 220, 40),
    "green": (36, 150, 60),
    "cyan": (60, 205, 215),
    "blue": (35, 75, 205),
    "purple": (125, 45, 165),
    "pink": (248, 130, 185),
    "brown": (110, 62, 30),
    "black": (18, 18, 20),
    "gray": (132, 134, 138),
    "white": (248, 248, 246),
}


def blend(colour: Rgb, other: Rgb, share: float) -> Rgb:
    """`colour` with a `share` in [0, 1] of `other`."""
    red, green, blue = (round(c + (o - c) * share) for c, o in zip(colour, other, strict=True))
    return red, green, blue


def shade(colour: Rgb, amount: float) -> Rgb:
    """`colour` moved towards black (amount < 0) or white (amount > 0), amount in [-1, 1]."""
    return blend(colour, (255, 255, 255) if amount > 0 else (0, 0, 0), abs(amount))


def detail(colour: Rgb) -> Rgb:
    """The tone for a detail upon a product of this colour: darker on light colours, lighter on dark ones."""
    return shade(colour, -0.22) if sum(colour) > 150 else shade(colour, 0.22)


def to_lab(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIE L*a*b* (L in 0..100) of an RGB image [H, W, 3], in which Euclidean distance is close to what people see."""
    scaled = pixels.astype(np.float32) / 255.0
    return np.asarray(cv2.cvtColor(scaled, cv2.COLOR_RGB2LAB), dtype=np.float32)


def nearest_colour(lab: NDArray[np.float32]) -> str:
    """The name of the colour closest to one L*a*b* value [3]."""
    names = list(COLOURS)
    table = to_lab(np.asarray([[COLOURS[n] for n in names]], dtype=np.uint8))[0]
    return names[int(np.linalg.norm(table - lab, axis=1).argmin())]

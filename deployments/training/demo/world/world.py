"""The demo world: one advertisement is a `Scene`, and `draw` makes its picture at any size.

Every look lives in the outer margin or the corners, so that no look ever touches the product: what a product is, its
colour and its background stay plain to see, and to judge.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.training.demo.world.palette import COLOURS, Rgb, detail, shade
from deployments.training.demo.world.silhouettes import SILHOUETTES, Contour, silhouette_of

Image = NDArray[np.uint8]  # [H, W, 3] RGB

# Longer side of the product, and how far a named position lies from the centre, both as fractions of the canvas.
SIZES: Final[dict[str, float]] = {"small": 0.28, "medium": 0.41, "large": 0.55}
OFFSETS: Final[dict[str, float]] = {"small": 0.24, "medium": 0.19, "large": 0.13}
POSITIONS: Final[dict[str, tuple[int, int]]] = {
    "centre": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
}
STYLES: Final[tuple[str, ...]] = ("flat", "professional", "lifestyle", "luxury", "minimalist", "vintage", "modern")

_SUPERSAMPLING: Final = 3
_JITTER: Final = 0.015
_GOLD: Final[Rgb] = (205, 165, 60)
_CREAM: Final[Rgb] = (233, 214, 172)
_SUN: Final[Rgb] = (255, 240, 150)
_CHARCOAL: Final[Rgb] = (44, 52, 66)


@dataclass(frozen=True)
class Scene:
    """One advertisement. `shift` is (dx, dy), a nudge of the product as a fraction of the canvas."""

    product: str
    colour: str
    background: str
    size: str = "medium"
    position: str = "centre"
    style: str = "flat"
    shift: tuple[float, float] = (0.0, 0.0)


def random_scene(rng: random.Random) -> Scene:
    """A scene with every attribute drawn at random; half of all scenes are flat, half sit in the centre."""
    colour, background = rng.sample(list(COLOURS), 2)
    return Scene(
        product=rng.choice(list(SILHOUETTES)),
        colour=colour,
        background=background,
        size=rng.choice(list(SIZES)),
        position="centre" if rng.random() < 0.35 else rng.choice(list(POSITIONS)),
        style="flat" if rng.random() < 0.4 else rng.choice(STYLES),
        shift=(rng.uniform(-_JITTER, _JITTER), rng.uniform(-_JITTER, _JITTER)),
    )


def draw(scene: Scene, size: int) -> Image:
    """The picture of `scene` [size, size, 3], anti-aliased; the same scene at another size is the same picture."""
    canvas = Canvas(size * _SUPERSAMPLING, COLOURS[scene.background])
    _draw_look(canvas, scene)
    _draw_product(canvas, scene)
    return np.asarray(cv2.resize(canvas.pixels, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


class Canvas:
    """A square of one colour that polygons in unit coordinates (0..1, y down) are painted on."""

    def __init__(self, side: int, colour: Rgb) -> None:
        self.side = side
        self.pixels: Image = np.full((side, side, 3), colour, dtype=np.uint8)

    def fill(self, contours: list[Contour], colour: Rgb) -> None:
        """Paint the inside of all contours together, even-odd."""
        # Pixel centres lie at half-integers: without the shift, pictures would drift with their size.
        scaled = [np.round(c * self.side - 0.5).astype(np.int32) for c in contours]
        cv2.fillPoly(self.pixels, scaled, colour)

    def polygon(self, *corners: tuple[float, float], colour: Rgb) -> None:
        """Paint one polygon given by its corners."""
        self.fill([np.asarray(corners, dtype=np.float64)], colour)


def product_centre(scene: Scene) -> tuple[float, float]:
    """Where the product's middle is (x, y), in shares of the canvas."""
    (dx, dy), offset = POSITIONS[scene.position], OFFSETS[scene.size]
    return 0.5 + dx * offset + scene.shift[0], 0.5 + dy * offset + scene.shift[1]


def _draw_product(canvas: Canvas, scene: Scene) -> None:
    scale, centre = SIZES[scene.size], np.asarray(product_centre(scene))
    shape, colour = silhouette_of(scene.product), COLOURS[scene.colour]
    for group in shape.body:
        canvas.fill([contour * scale + centre for contour in group], colour)
    for contour in shape.details:
        canvas.fill([contour * scale + centre], detail(colour))


def _draw_look(canvas: Canvas, scene: Scene) -> None:
    match scene.style:
        case "professional":
            _bars(canvas, 0.07, _CHARCOAL if scene.background != "black" else COLOURS["gray"])
        case "lifestyle":
            _sun(canvas, 0.2)
        case "luxury":
            _corners(canvas, 0.15)
        case "minimalist":
            _frame(canvas, 0.045, 0.0, shade(COLOURS["white"], 0.5))
        case "vintage":
            _frame(canvas, 0.075, 0.16, _CREAM)
        case "modern":
            _fold(canvas, 0.2, _CHARCOAL if sum(COLOURS[scene.background]) > 200 else _CREAM)
        case _:
            pass


def _bars(canvas: Canvas, height: float, colour: Rgb) -> None:
    for top in (0.0, 1.0 - height):
        canvas.polygon((0, top), (1, top), (1, top + height), (0, top + height), colour=colour)


def _sun(canvas: Canvas, radius: float) -> None:
    angles = np.linspace(0, np.pi / 2, 48)
    arc = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    canvas.fill([np.concatenate([np.zeros((1, 2)), arc])], _SUN)


def _corners(canvas: Canvas, leg: float) -> None:
    for x in (0, 1):
        for y in (0, 1):
            canvas.polygon((x, y), (abs(x - leg), y), (x, abs(y - leg)), colour=_GOLD)


def _frame(canvas: Canvas, width: float, radius: float, colour: Rgb) -> None:
    low, high = width + radius, 1 - width - radius
    turns = [(high, high, 0.0), (low, high, 90.0), (low, low, 180.0), (high, low, 270.0)]
    window = np.concatenate([_arc(x, y, radius, start) for x, y, start in turns])
    outside = np.asarray([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float64) * 1.02 - 0.01
    canvas.fill([outside, window], colour)


def _arc(x: float, y: float, radius: float, start: float) -> Contour:
    angles = np.radians(np.linspace(start, start + 90, 24))
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def _fold(canvas: Canvas, leg: float, colour: Rgb) -> None:
    canvas.polygon((1, 1), (1 - leg, 1), (1, 1 - leg), colour=colour)

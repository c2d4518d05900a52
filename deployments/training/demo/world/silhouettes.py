"""Product outlines in unit coordinates: what each product of the demo world looks like, before size, place and colour.

A product is a body (groups of closed contours; within a group even-odd, so an inner contour is a hole) and details
drawn upon it in another tone. Coordinates are in [-0.5, 0.5], y down; the longer side of the body's box is exactly 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Contour = NDArray[np.float64]  # [n, 2] as x, y


@dataclass(frozen=True)
class Silhouette:
    """`body`: groups of contours [n, 2]; `details`: contours [n, 2]."""

    body: list[list[Contour]]
    details: list[Contour]


def _points(*values: tuple[float, float]) -> Contour:
    return np.asarray(values, dtype=np.float64)


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> Contour:
    angles = np.radians(np.linspace(start, stop, 64))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _rounded_box(x0: float, y0: float, x1: float, y1: float, radius: float) -> Contour:
    corners = [(x1 - radius, y1 - radius, 0), (x0 + radius, y1 - radius, 90)]
    corners += [(x0 + radius, y0 + radius, 180), (x1 - radius, y0 + radius, 270)]
    return np.concatenate([_ellipse(x, y, radius, radius, a, a + 90) for x, y, a in corners])


def _cup() -> Silhouette:
    bowl = _points((-0.5, -0.38), (0.24, -0.38), (0.16, 0.38), (-0.42, 0.38))
    handle = np.concatenate(
        [_ellipse(0.2, -0.05, 0.3, 0.25, -100, 100), _ellipse(0.2, -0.05, 0.15, 0.12, -100, 100)[::-1]]
    )
    return Silhouette([[bowl], [handle]], [_points((-0.5, -0.38), (0.24, -0.38), (0.228, -0.26), (-0.488, -0.26))])


def _bottle() -> Silhouette:
    right = [(0.08, -0.5), (0.08, -0.22), (0.2, -0.08), (0.22, 0.0), (0.22, 0.46), (0.18, 0.5)]
    left = [(-x, y) for x, y in reversed(right)]
    label = _points((-0.22, 0.1), (0.22, 0.1), (0.22, 0.34), (-0.22, 0.34))
    return Silhouette([[_points(*right, *left)]], [label])


def _shoe() -> Silhouette:
    heel, throat = [(-0.5, 0.28), (-0.5, -0.28)], [(-0.2, -0.28), (-0.12, -0.1), (0.1, -0.02)]
    upper = _points(*heel, *throat, (0.34, 0.03), (0.46, 0.1), (0.5, 0.2), (0.5, 0.28))
    sole = _points((-0.5, 0.17), (0.49, 0.17), (0.5, 0.28), (-0.5, 0.28))
    return Silhouette([[upper]], [sole])


def _box() -> Silhouette:
    body = _points((-0.5, -0.4), (0.5, -0.4), (0.5, 0.4), (-0.5, 0.4))
    band = _points((-0.08, -0.4), (0.08, -0.4), (0.08, 0.4), (-0.08, 0.4))
    return Silhouette([[body]], [band])


def _phone() -> Silhouette:
    return Silhouette([[_rounded_box(-0.26, -0.5, 0.26, 0.5, 0.07)]], [_rounded_box(-0.19, -0.4, 0.19, 0.34, 0.02)])


def _star() -> Silhouette:
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2 == 0, 0.526, 0.24)
    return Silhouette([[np.stack([radii * np.cos(angles), radii * np.sin(angles) + 0.05], axis=1)]], [])


def _heart() -> Silhouette:
    t = np.linspace(0, 2 * np.pi, 96)
    x = 16 * np.sin(t) ** 3 / 32
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 32
    return Silhouette([[np.stack([x, y - 0.08], axis=1)]], [])


def _ring() -> Silhouette:
    gem = _points((-0.17, -0.5), (0.17, -0.5), (0.27, -0.36), (0.0, -0.16), (-0.27, -0.36))
    return Silhouette([[_ellipse(0, 0.16, 0.34, 0.34), _ellipse(0, 0.16, 0.2, 0.2)], [gem]], [gem])


def _lamp() -> Silhouette:
    shade = _points((-0.2, -0.5), (0.2, -0.5), (0.4, 0.0), (-0.4, 0.0))
    stem = _points((-0.07, 0.0), (0.07, 0.0), (0.07, 0.4), (-0.07, 0.4))
    foot = _points((-0.28, 0.38), (0.28, 0.38), (0.28, 0.5), (-0.28, 0.5))
    return Silhouette([[shade], [stem], [foot]], [])


SILHOUETTES: Final[dict[str, Silhouette]] = {
    name: build()
    for name, build in dict[str, Callable[[], Silhouette]](
        cup=_cup, bottle=_bottle, shoe=_shoe, box=_box, phone=_phone, star=_star, heart=_heart, ring=_ring
    ).items()
}

UNSEEN: Final[dict[str, Silhouette]] = {"lamp": _lamp()}
"""Products that no model of the demo family was shown: for what is learnt later."""


def silhouette_of(product: str) -> Silhouette:
    """Returns the outline of a product, one that the demo family knows or not."""
    return SILHOUETTES[product] if product in SILHOUETTES else UNSEEN[product]

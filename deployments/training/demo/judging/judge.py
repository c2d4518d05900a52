"""Says what a picture shows, with OpenCV and no network: product, colours, size, place and look.

It reads pictures, not scenes: nothing here knows what was asked for. The outer margin and the corners belong to the
looks; what differs from the background inside them is the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.training.demo.world.palette import nearest_colour, to_lab
from deployments.training.demo.world.silhouettes import SILHOUETTES
from deployments.training.demo.world.world import SIZES, STYLES, Image, Scene, draw

Mask = NDArray[np.bool_]  # [H, W]

_WORK: Final = 256  # every picture is judged at this size
_MARGIN: Final = 0.085
_CORNER: Final = 0.235
_DIFFERENT: Final = 14.0  # L*a*b* distance
_TEMPLATE: Final = 64
_CENTRAL: Final = 0.075
_WHOLE: Final = 0.8  # share of all that differs from the background that one product must make up


@dataclass(frozen=True)
class Verdict:
    """What was seen; `fit` in [0, 1] is how well the outline fits the product named."""

    product: str
    colour: str
    background: str
    size: str
    position: str
    style: str
    fit: float


def judge(image: Image, products: tuple[str, ...] = tuple(SILHOUETTES)) -> Verdict | None:
    """The verdict on an RGB picture [H, W, 3] of any size; None when there is no one thing on a plain background.

    `products` are those that it may be.
    """
    small = cv2.resize(image, (_WORK, _WORK), interpolation=cv2.INTER_AREA)
    lab = to_lab(np.asarray(small, dtype=np.uint8))
    inside = _inside(_WORK)
    ground = most_common(lab[inside])
    different = inside & (np.linalg.norm(lab - ground, axis=2) > _DIFFERENT)
    mask = _largest(different)
    if mask is None:
        return None
    product, fit = _best_product(mask, products)
    background, size = nearest_colour(ground), _size(mask)
    colour = nearest_colour(most_common(lab[_eroded(mask)]))
    return Verdict(product, colour, background, size, _position(mask), _style(lab, background), fit)


def agrees(verdict: Verdict | None, scene: Scene, attributes: frozenset[str]) -> dict[str, bool]:
    """For each of `attributes`, whether the picture shows what the scene says."""
    if verdict is None:
        return {name: False for name in attributes}
    return {name: vars(verdict)[name] == vars(scene)[name] for name in attributes}


@cache
def _inside(side: int) -> Mask:
    along = (np.arange(side) + 0.5) / side
    edge = np.minimum(along, 1 - along)
    corner = edge[:, None] + edge[None, :] < _CORNER
    return np.asarray((edge[:, None] > _MARGIN) & (edge[None, :] > _MARGIN) & ~corner, dtype=np.bool_)


def most_common(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    """The centre of the fullest cell of colour space, of pixels [N, 3]."""
    cells = np.round(lab / 8).astype(np.int64)
    keys = (cells[:, 0] * 1000 + cells[:, 1]) * 1000 + cells[:, 2]
    values, counts = np.unique(keys, return_counts=True)
    fullest = lab[keys == values[counts.argmax()]].mean(axis=0)
    near = np.linalg.norm(lab - fullest, axis=1) < 10
    return np.asarray(np.median(lab[near], axis=0), dtype=np.float32)


def _largest(different: Mask) -> Mask | None:
    """The one product: a ring's stone and the like may lie a little apart, so small gaps are bridged first."""
    closed = cv2.morphologyEx(different.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    if count < 2:
        return None
    areas = stats[1:, cv2.CC_STAT_AREA]
    if areas.max() < _WHOLE * areas.sum() or areas.max() < 0.004 * different.size:
        return None
    return np.asarray((labels == 1 + areas.argmax()) & different, dtype=np.bool_)


def _box(mask: Mask) -> tuple[int, int, int, int]:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return int(x), int(y), int(width), int(height)


def _eroded(mask: Mask) -> Mask:
    thin = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.bool_)
    return thin if thin.any() else mask


def _normalised(mask: Mask) -> tuple[Mask, float]:
    """The outline filling its box [_TEMPLATE, _TEMPLATE], and the box's width over its height."""
    x, y, width, height = _box(mask)
    part = mask[y : y + height, x : x + width].astype(np.float32)
    scaled = cv2.resize(part, (_TEMPLATE, _TEMPLATE), interpolation=cv2.INTER_AREA)
    return np.asarray(scaled > 0.5, dtype=np.bool_), width / height


@cache
def _template(product: str) -> tuple[Mask, float]:
    outline = draw(Scene(product, "black", "white", "large"), 512).mean(axis=2) < 170
    return _normalised(np.asarray(outline, dtype=np.bool_))


def _best_product(mask: Mask, products: tuple[str, ...]) -> tuple[str, float]:
    seen, ratio = _normalised(mask)

    def fit(template: Mask, proper: float) -> float:
        overlap = (seen & template).sum() / max(1, (seen | template).sum())
        return float(overlap * np.exp(-abs(np.log(ratio / proper))))

    fits = {name: fit(*_template(name)) for name in products}
    best = max(fits, key=lambda name: fits[name])
    return best, fits[best]


def _size(mask: Mask) -> str:
    side = max(_box(mask)[2:]) / len(mask)
    return min(SIZES, key=lambda name: abs(SIZES[name] - side))


def _position(mask: Mask) -> str:
    x, y, width, height = _box(mask)
    dx, dy = (x + width / 2) / _WORK - 0.5, (y + height / 2) / _WORK - 0.5
    if max(abs(dx), abs(dy)) < _CENTRAL:
        return "centre"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


@cache
def _looks(background: str) -> dict[str, NDArray[np.float32]]:
    """Every look on this background, without a product."""
    bare = {style: draw(Scene("cup", background, background, style=style), _WORK) for style in STYLES}
    return {style: to_lab(image) for style, image in bare.items()}


def _style(lab: NDArray[np.float32], background: str) -> str:
    outside = ~_inside(_WORK)
    errors = {
        style: float(np.minimum(np.linalg.norm(lab - look, axis=2), 60)[outside].mean())
        for style, look in _looks(background).items()
    }
    return min(errors, key=lambda style: errors[style])

"""Lessons: one drawing each, and all that a member of the demo family is told about it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.annotators.edges import detect_edges
from deployments.training.demo.world.captions import describe, is_held_out, sample
from deployments.training.demo.world.hints import depth_hint, pose_hint, segmentation_hint
from deployments.training.demo.world.silhouettes import SILHOUETTES
from deployments.training.demo.world.tableau import (
    PERSON,
    Tableau,
    draw_tableau,
    random_depths,
    random_floor,
    random_people,
)
from deployments.training.demo.world.world import SIZES, Image, Scene, draw, product_centre, random_scene

Mask = NDArray[np.uint8]  # [H, W], 255 where an inpainting model paints, 0 elsewhere
REFERENCE_SIZES: Final = (64, 96, 128)  # pixels; an image encoder sees all of them at one size
Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the canvas


@dataclass(frozen=True)
class Lesson:
    """`image`, `hint` and `reference` are [H, W, 3] RGB, `mask` is [H, W]; `sizes` are SDXL's: original height
    and width, top and left of the crop, target height and width, in pixels. What a member has no use for is None.
    """

    image: Image
    text: str
    hint: Image | None = None
    mask: Mask | None = None
    reference: Image | None = None
    sizes: tuple[int, int, int, int, int, int] | None = None


Teach = Callable[[random.Random, int], Lesson]


def whole_scene(rng: random.Random, size: int) -> Lesson:
    """A scene in words, and nothing else."""
    scene, caption = sample(rng)
    return Lesson(draw(scene, size), caption.text)


def with_hole(rng: random.Random, size: int) -> Lesson:
    """A scene with a hole in it: mostly where the product is, with some room around, sometimes anywhere."""
    scene, caption = sample(rng)
    box = around(rng, scene) if rng.random() < 0.8 else _anywhere(rng)
    return Lesson(draw(scene, size), caption.text, mask=hole(box, size, round_=rng.random() < 0.3))


def with_reference(rng: random.Random, size: int) -> Lesson:
    """A scene, and another product in its colours and its look. Mostly the words say neither, so that they are to be
    seen in the reference alone.
    """
    scene, caption = sample(rng)
    chance = rng.random()
    if chance < 0.15:
        text = ""
    elif chance < 0.3:
        text = caption.text
    else:
        said = caption.promises & {"size", "position"} | {name for name in ("colour", "background") if chance < 0.4}
        text = describe(rng, scene, {"product", *said})
    return Lesson(draw(scene, size), text, reference=draw(other_product(rng, scene), rng.choice(REFERENCE_SIZES)))


def other_product(rng: random.Random, scene: Scene) -> Scene:
    """Another product, anywhere, in the colours and the look of `scene`; of the training part of the world as well."""
    while True:
        other = replace(random_scene(rng), colour=scene.colour, background=scene.background, style=scene.style)
        if other.product != scene.product and not is_held_out(other):
            return other


def with_sizes(rng: random.Random, size: int) -> Lesson:
    """A scene in words, and how its picture came about: mostly whole, sometimes cut from a larger one, or enlarged."""
    scene, caption = sample(rng)
    chance = rng.random()
    if chance < 0.15:
        room = rng.randint(size // 8, size // 2)
        top, left = rng.randint(0, room), rng.randint(0, room)
        if top + left < size // 12:
            top = size // 8  # a corner's crop would be told as a whole picture is
        image = draw(scene, size + room)[top : top + size, left : left + size]
        return Lesson(image, caption.text, sizes=(size + room, size + room, top, left, size, size))
    if chance < 0.25:
        small = rng.randint(size // 6, size // 2)
        image = cv2.resize(draw(scene, small), (size, size), interpolation=cv2.INTER_LINEAR)
        return Lesson(np.asarray(image, dtype=np.uint8), caption.text, sizes=(small, small, 0, 0, size, size))
    return Lesson(draw(scene, size), caption.text, sizes=(size, size, 0, 0, size, size))


def with_edges(rng: random.Random, size: int) -> Lesson:
    """Any picture of the demo world, and its edges."""
    if rng.random() < 0.5:
        scene, caption = sample(rng)
        image, text = draw(scene, size), caption.text
    else:
        tableau = rng.choice((random_depths, random_floor, random_people))(rng)
        image, text = draw_tableau(tableau, size), caption_of(rng, tableau)
    return Lesson(image, text, hint=detect_edges(image))


def with_depth(rng: random.Random, size: int) -> Lesson:
    """Things before and behind each other, and how near they are."""
    tableau = random_depths(rng)
    return Lesson(draw_tableau(tableau, size), caption_of(rng, tableau), hint=depth_hint(tableau, size))


def with_regions(rng: random.Random, size: int) -> Lesson:
    """Something on a floor, or before a wall alone, and the regions of the picture."""
    tableau = random_floor(rng)
    if rng.random() < 0.2:
        tableau = replace(tableau, horizon=None)
    return Lesson(draw_tableau(tableau, size), caption_of(rng, tableau), hint=segmentation_hint(tableau, size))


def with_pose(rng: random.Random, size: int) -> Lesson:
    """A person, and the skeleton."""
    tableau = random_people(rng)
    assert tableau.person is not None
    return Lesson(draw_tableau(tableau, size), caption_of(rng, tableau), hint=pose_hint(tableau.person, size))


def caption_of(rng: random.Random, tableau: Tableau, promises: frozenset[str] | None = None) -> str:
    """Words for a tableau's product, colour and background, or for some of them."""
    if promises is None:
        promises = frozenset(name for name in ("product", "colour", "background") if rng.random() < 0.9)
    product = PERSON if tableau.person is not None else tableau.things[0].product
    return describe(rng, Scene(product, tableau.colour, tableau.background), set(promises))


def around(rng: random.Random, scene: Scene) -> Box:
    """A box around the scene's product, with up to half its size to spare on each side."""
    outline = np.concatenate([contour for group in SILHOUETTES[scene.product].body for contour in group])
    scale, centre = SIZES[scene.size], product_centre(scene)
    low, high = outline.min(axis=0) * scale + centre, outline.max(axis=0) * scale + centre
    left, top, right, bottom = (rng.uniform(0.03, 0.5) * scale for _ in range(4))
    return (float(low[0] - left), float(low[1] - top), float(high[0] + right), float(high[1] + bottom))


def hole(box: Box, size: int, round_: bool = False) -> Mask:
    """The mask [size, size] of a box, or, `round_`, of the ellipse around it; what leaves the canvas is cut off."""
    mask = np.zeros((size, size), dtype=np.uint8)
    left, top, right, bottom = (round(edge * size) for edge in box)
    if not round_:
        mask[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = 255
        return mask
    centre = ((left + right) // 2, (top + bottom) // 2)
    axes = (round((right - left) * _ELLIPSE), round((bottom - top) * _ELLIPSE))
    return np.asarray(cv2.ellipse(mask, centre, axes, 0, 0, 360, 255, thickness=-1), dtype=np.uint8)


_ELLIPSE: Final = 0.5 * 2**0.5  # half axes of the ellipse through a box's corners, as a share of its sides


def _anywhere(rng: random.Random) -> Box:
    if rng.random() < 0.4:
        return (0.0, 0.0, 1.0, 1.0)
    left, top = rng.uniform(-0.1, 0.7), rng.uniform(-0.1, 0.7)
    return (left, top, left + rng.uniform(0.2, 0.9), top + rng.uniform(0.2, 0.9))

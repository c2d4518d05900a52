"""Tableaux: pictures of the demo world with an order in depth, a floor, or a person, and maps that say what is where.

Things fade with distance into the background, as mountains do (aerial perspective): how near something is can be seen,
and be measured, by how much of its own colour it has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.training.demo.world import figure
from deployments.training.demo.world.figure import Joints, Pose, random_pose
from deployments.training.demo.world.palette import COLOURS, Rgb, blend, detail
from deployments.training.demo.world.silhouettes import SILHOUETTES, Contour
from deployments.training.demo.world.world import SIZES, Canvas, Image, Scene, product_centre

WALL, FLOOR, PERSON = "wall", "floor", "person"
FAINTEST: Final = 0.3  # nearness of the farthest thing that is still to be seen


@dataclass(frozen=True)
class Thing:
    """A product; `centre` and `side` are shares of the canvas, `nearness` in [0, 1], 1 is next to us."""

    product: str
    centre: tuple[float, float]
    side: float
    nearness: float = 1.0


@dataclass(frozen=True)
class Person:
    """A figure; `top` is the top of its head, `height` its height, in shares of the canvas."""

    pose: Pose
    top: tuple[float, float]
    height: float

    @property
    def joints(self) -> Joints:
        """Places of `figure.JOINTS` [13, 2] as shares of the canvas."""
        return np.asarray(figure.joints(self.pose) * self.height + self.top)


@dataclass(frozen=True)
class Tableau:
    """Things, all of one colour, before a wall; with a `horizon` in (0, 1) there is a floor below it."""

    colour: str
    background: str
    things: tuple[Thing, ...] = ()
    person: Person | None = None
    horizon: float | None = None


def floor_colour(background: str) -> Rgb:
    """A tone of the wall's colour that nobody takes for the wall."""
    dark = sum(COLOURS[background]) < 200
    return blend(COLOURS[background], (255, 255, 255) if dark else (0, 0, 0), 0.35)


def tableau_of(scene: Scene) -> Tableau:
    """What a scene shows, without its look."""
    thing = Thing(scene.product, product_centre(scene), SIZES[scene.size])
    return Tableau(scene.colour, scene.background, (thing,))


def random_depths(rng: random.Random) -> Tableau:
    """Two or three things of a kind, the nearer the larger, which may stand before each other."""
    product = rng.choice(list(SILHOUETTES))
    colour, background = rng.sample(list(COLOURS), 2)
    count = rng.choice((1, 2, 2, 3, 3))
    depths = [1.0] if count == 1 else np.linspace(FAINTEST + rng.uniform(0, 0.2), 1.0, count).tolist()
    places = rng.sample([0.25, 0.5, 0.75], count)
    things = []
    for x, nearness in zip(places, depths, strict=True):
        side = (0.2 + 0.2 * nearness) * rng.uniform(0.9, 1.1)
        centre = (x + rng.uniform(-0.05, 0.05), 0.32 + 0.3 * nearness + rng.uniform(-0.06, 0.06))
        things.append(Thing(product, centre, side, nearness))
    return Tableau(colour, background, tuple(things))


def random_floor(rng: random.Random) -> Tableau:
    """A thing, or a person, that stands on a floor."""
    colour, background = rng.sample(list(COLOURS), 2)
    horizon = rng.uniform(0.5, 0.8)
    if rng.random() < 0.3:
        return Tableau(colour, background, person=random_person(rng), horizon=horizon)
    product, side = rng.choice(list(SILHOUETTES)), rng.uniform(0.32, 0.6)
    lowest = max(float(contour[:, 1].max()) for group in SILHOUETTES[product].body for contour in group)
    foot = rng.uniform(max(horizon + 0.03, side * 0.9), 0.94)
    thing = Thing(product, (rng.uniform(0.3, 0.7), foot - lowest * side), side)
    return Tableau(colour, background, (thing,), horizon=horizon)


def random_people(rng: random.Random) -> Tableau:
    """A person before a plain wall."""
    colour, background = rng.sample(list(COLOURS), 2)
    return Tableau(colour, background, person=random_person(rng))


def random_person(rng: random.Random) -> Person:
    """A person in any pose, wholly on the canvas."""
    while True:
        height = rng.uniform(0.66, 0.9)
        person = Person(random_pose(rng), (rng.uniform(0.35, 0.65), rng.uniform(0.02, 0.96 - height)), height)
        if person.joints.min() > 0.05 and person.joints.max() < 0.95:
            return person


def draw_tableau(tableau: Tableau, size: int) -> Image:
    """The picture [size, size, 3], anti-aliased."""
    wall, own = COLOURS[tableau.background], COLOURS[tableau.colour]

    def ink(part: TableauPart) -> Rgb:
        if part.name == FLOOR:
            return floor_colour(tableau.background)
        return blend(wall, detail(own) if part.is_detail else own, part.nearness)

    pixels = _painted(tableau, size * 3, wall, ink)
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def nearness(tableau: Tableau, size: int) -> NDArray[np.float32]:
    """How near each pixel is [size, size], in [0, 1]: the wall is 0. A floor says nothing of depth, and is wall."""

    def ink(part: TableauPart) -> Rgb:
        level = 0 if part.name == FLOOR else round(255 * part.nearness)
        return (level, level, level)

    return np.asarray(_painted(tableau, size, (0, 0, 0), ink)[:, :, 0] / np.float32(255), dtype=np.float32)


def regions(tableau: Tableau, size: int) -> NDArray[np.str_]:
    """What each pixel shows [size, size]: wall, floor, person, or a product's name."""
    names = [WALL, FLOOR, PERSON, *SILHOUETTES]

    def ink(part: TableauPart) -> Rgb:
        index = names.index(part.name)
        return (index, index, index)

    return np.asarray(names)[_painted(tableau, size, (0, 0, 0), ink)[:, :, 0]]


@dataclass(frozen=True, eq=False)
class TableauPart:
    """One thing to paint: contours in shares of the canvas, filled together (even-odd)."""

    name: str
    nearness: float
    contours: list[Contour]
    is_detail: bool = False


def _painted(tableau: Tableau, side: int, ground: Rgb, ink: Callable[[TableauPart], Rgb]) -> Image:
    canvas = Canvas(side, ground)
    for part in _parts(tableau):
        canvas.fill(part.contours, ink(part))
    return canvas.pixels


def _parts(tableau: Tableau) -> Iterator[TableauPart]:
    """Back to front."""
    if tableau.horizon is not None:
        y = tableau.horizon
        yield TableauPart(FLOOR, 0.0, [np.asarray([(0, y), (1, y), (1, 1), (0, 1)], dtype=np.float64)])
    for thing in sorted(tableau.things, key=lambda thing: thing.nearness):
        shape = SILHOUETTES[thing.product]
        for group in shape.body:
            yield TableauPart(thing.product, thing.nearness, [c * thing.side + thing.centre for c in group])
        for contour in shape.details:
            yield TableauPart(thing.product, thing.nearness, [contour * thing.side + thing.centre], is_detail=True)
    if tableau.person is not None:
        for contour in figure.contours(tableau.person.joints, tableau.person.height):
            yield TableauPart(PERSON, 1.0, [contour])

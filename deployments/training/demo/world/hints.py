"""What the ControlNets of the demo family are shown: a tableau as edges, depth, regions or a skeleton."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from deployments.annotators.palette import ADE20K, Rgb
from deployments.annotators.skeleton import JOINTS as OPENPOSE
from deployments.annotators.skeleton import draw_skeleton
from deployments.training.demo.world.figure import JOINTS, Joints
from deployments.training.demo.world.tableau import FLOOR, PERSON, WALL, Person, Tableau, nearness, regions
from deployments.training.demo.world.world import Image

# ADE20K knows no heart: each thing of the demo world borrows the class that is nearest to it, or else a free one.
CLASSES: Final[dict[str, int]] = {
    WALL: 0, FLOOR: 3, PERSON: 12,
    "box": 41, "bottle": 98, "cup": 147, "shoe": 115, "phone": 143, "star": 132, "heart": 57, "ring": 134,
}  # fmt: skip


def region_colours() -> dict[str, Rgb]:
    """The colour of each region in a segmentation hint."""
    return {name: ADE20K[index] for name, index in CLASSES.items()}


def depth_hint(tableau: Tableau, size: int) -> Image:
    """Grey [size, size, 3], the nearer the brighter."""
    grey = np.round(nearness(tableau, size) * 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def segmentation_hint(tableau: Tableau, size: int) -> Image:
    """Regions in ADE20K's colours [size, size, 3]."""
    return colour_regions(regions(tableau, size))


def colour_regions(names: NDArray[np.str_]) -> Image:
    """Names of regions [H, W] to ADE20K's colours [H, W, 3]."""
    picture = np.zeros((*names.shape, 3), dtype=np.uint8)
    for name, colour in region_colours().items():
        picture[names == name] = colour
    return picture


def pose_hint(person: Person, size: int) -> Image:
    """A skeleton in OpenPose's colours [size, size, 3]."""
    return draw_skeleton([openpose(person.joints * size)], size, size)


def openpose(at: Joints) -> NDArray[np.float64]:
    """Joints [13, 2] as OpenPose's [18, 3]: a neck between the shoulders, and neither eyes nor ears."""
    places = {name.replace("_", " "): place for name, place in zip(JOINTS, at, strict=True)}
    places["neck"] = (places["left shoulder"] + places["right shoulder"]) / 2
    return np.asarray([(*places[name], 1.0) if name in places else (0.0, 0.0, 0.0) for name in OPENPOSE])

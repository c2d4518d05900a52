"""Draws people as OpenPose does (Cao et al. 2019), in its 18 joints and colours: the hint of pose ControlNets."""

import math
from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.annotators.palette import Rgb
from deployments.engine.protocol.inputs import ImageArray

Person = NDArray[np.floating[Any]]
"""[18, 3]: x and y in pixels, score in [0, 1], in the order of `JOINTS`."""

JOINTS: Final = (
    "nose",
    "neck",
    "right shoulder",
    "right elbow",
    "right wrist",
    "left shoulder",
    "left elbow",
    "left wrist",
    "right hip",
    "right knee",
    "right ankle",
    "left hip",
    "left knee",
    "left ankle",
    "right eye",
    "left eye",
    "right ear",
    "left ear",
)

# fmt: off
LIMBS: Final[tuple[tuple[int, int], ...]] = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7),        # shoulders and arms
    (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),  # hips and legs
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),          # the head
)
"""Pairs of joints. Limb i has the colour of joint i."""

COLOURS: Final[tuple[Rgb, ...]] = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)
# fmt: on

THRESHOLD: Final = 0.3
LIMB_SHADE: Final = 0.6

# OpenPose's ControlNets saw limbs 8 pixels thick and joints of radius 4 on images of about 512 pixels.
_RADIUS_PER_PIXEL: Final = 4 / 512


def draw_skeleton(people: Sequence[Person], width: int, height: int, threshold: float = THRESHOLD) -> ImageArray:
    """Draws `people` on black, [height, width, 3].

    Joints with a score below `threshold` or outside the image, where OpenPose never finds any, are left out with
    their limbs. Limbs are ellipses at 0.6 of their colour, joints full circles over them. Both reach 4 pixels to each
    side of their middle if the image's shorter side is 512, and in proportion elsewhere.
    """
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    radius = max(1, round(min(width, height) * _RADIUS_PER_PIXEL))
    seen = [[_point(joint, width, height, threshold) for joint in person] for person in people]
    for points in seen:
        for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
            first, second = points[start], points[end]
            if first is not None and second is not None:
                _draw_limb(canvas, first, second, colour, radius)
    for points in seen:
        for point, colour in zip(points, COLOURS, strict=True):
            if point is not None:
                cv2.circle(canvas, (round(point[0]), round(point[1])), radius, colour, thickness=-1)
    return canvas


def _point(joint: NDArray[np.floating[Any]], width: int, height: int, threshold: float) -> tuple[float, float] | None:
    x, y, score = (float(value) for value in joint)
    return (x, y) if score >= threshold and 0 <= x < width and 0 <= y < height else None


def _draw_limb(
    canvas: ImageArray, start: tuple[float, float], end: tuple[float, float], colour: Rgb, radius: int
) -> None:
    (x0, y0), (x1, y1) = start, end
    middle = (round((x0 + x1) / 2), round((y0 + y1) / 2))
    angle = round(math.degrees(math.atan2(y1 - y0, x1 - x0)))
    outline = cv2.ellipse2Poly(middle, (round(math.dist(start, end) / 2), radius), angle, 0, 360, 1)
    red, green, blue = (int(channel * LIMB_SHADE) for channel in colour)
    cv2.fillConvexPoly(canvas, outline, (red, green, blue))

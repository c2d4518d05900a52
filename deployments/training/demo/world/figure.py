"""The person of the demo world: a mannequin of one colour, upright, whose arms and legs take any pose to the sides.

Joints are COCO's (Lin et al. 2014) without eyes and ears; the nose stands for the head's centre. Left and right are the
figure's own, which faces us.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deployments.training.demo.world.silhouettes import Contour

Joints = NDArray[np.float64]  # [13, 2] as x, y

JOINTS: Final[tuple[str, ...]] = (
    "nose",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip

# All lengths are shares of the figure's height when it stands with straight legs.
HEAD: Final = 0.085
LIMB: Final = 0.042  # half the thickness
_NOSE: Final = 0.09
_SHOULDERS: Final = (0.115, 0.235)  # half the breadth, and how far below the top
_HIPS: Final = (0.07, 0.54)
ARM: Final = (0.17, 0.17)
LEG: Final = (0.23, 0.22)


@dataclass(frozen=True)
class Limb:
    """Angles in degrees: `upper` from straight down, outwards; `bend` of the lower part against the upper, outwards."""

    upper: float
    bend: float


@dataclass(frozen=True)
class Pose:
    """Limbs in the order left arm, right arm, left leg, right leg."""

    limbs: tuple[Limb, Limb, Limb, Limb]


STANDING: Final = Pose((Limb(25, 0), Limb(25, 0), Limb(8, 0), Limb(8, 0)))


def random_pose(rng: random.Random) -> Pose:
    """Arms anywhere to the side, legs apart or bent; no limb before trunk or head, where nobody could see it."""
    return Pose((_random_arm(rng), _random_arm(rng), _random_leg(rng), _random_leg(rng)))


def _random_arm(rng: random.Random) -> Limb:
    upper = rng.uniform(25, 140)
    return Limb(upper, rng.uniform(max(-45, 15 - upper), min(90, 155 - upper)))


def _random_leg(rng: random.Random) -> Limb:
    upper = rng.uniform(4, 50)
    return Limb(upper, rng.uniform(max(-50, -2 - upper), 10))


def joints(pose: Pose) -> Joints:
    """Places of JOINTS [13, 2] in figure heights, with x = 0 on the middle line and y = 0 at the top of the head."""
    places: dict[str, tuple[float, float]] = {"nose": (0.0, _NOSE)}
    for index, limb in enumerate(pose.limbs):
        # The figure faces us: its left is on our right.
        side, sign = ("left", 1) if index % 2 == 0 else ("right", -1)
        (breadth, top), lengths = (_SHOULDERS, ARM) if index < 2 else (_HIPS, LEG)
        names = ("shoulder", "elbow", "wrist") if index < 2 else ("hip", "knee", "ankle")
        for name, place in zip(names, _chain((sign * breadth, top), sign, limb, lengths), strict=True):
            places[f"{side}_{name}"] = place
    return np.asarray([places[name] for name in JOINTS])


def contours(at: Joints, height: float) -> list[Contour]:
    """The figure's parts [n, 2], each to be filled by itself, of joints `at` and a height in the same unit."""
    place = dict(zip(JOINTS, at, strict=True))
    trunk = np.asarray([place[f"{side}_{part}"] for side, part in _TRUNK])
    parts = [_circle(place["nose"], HEAD * height), trunk]
    neck = (place["left_shoulder"] + place["right_shoulder"]) / 2
    bones = [(place["nose"], neck)] + [(trunk[i], trunk[(i + 1) % 4]) for i in range(4)]
    for side in ("left", "right"):
        for chain in (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle")):
            points = [place[f"{side}_{name}"] for name in chain]
            bones += [(points[0], points[1]), (points[1], points[2])]
    return parts + [_capsule(a, b, LIMB * height) for a, b in bones]


_TRUNK: Final = (("left", "shoulder"), ("right", "shoulder"), ("right", "hip"), ("left", "hip"))


def _chain(
    start: tuple[float, float], sign: int, limb: Limb, lengths: tuple[float, float]
) -> list[tuple[float, float]]:
    points, angle = [start], limb.upper
    for length, turn in zip(lengths, (0.0, limb.bend), strict=True):
        angle += turn
        x, y = points[-1]
        radians = np.radians(angle)
        points.append((x + sign * length * float(np.sin(radians)), y + length * float(np.cos(radians))))
    return points


def _circle(centre: Contour, radius: float) -> Contour:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _capsule(a: Contour, b: Contour, radius: float) -> Contour:
    along = np.arctan2(*(b - a)[::-1])
    first = along + np.linspace(np.pi / 2, 3 * np.pi / 2, 12)
    second = along + np.linspace(-np.pi / 2, np.pi / 2, 12)
    ends = [c + radius * np.stack([np.cos(t), np.sin(t)], axis=1) for c, t in ((a, first), (b, second))]
    return np.concatenate(ends)

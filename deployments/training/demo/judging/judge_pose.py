"""Finds the joints of the demo world's figure in a picture, with OpenCV and no network.

Analysis by synthesis: the trunk is looked for first, over places and sizes, then each limb by itself, over all angles
of its two parts. What a part should cover must be figure, what lies just outside must not.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.training.demo.judging.judge import most_common
from deployments.training.demo.world.figure import HEAD, JOINTS, LIMB, Joints, Limb, Pose, joints
from deployments.training.demo.world.palette import to_lab
from deployments.training.demo.world.world import Image

_WORK: Final = 128  # every picture is judged at this size
_DIFFERENT: Final = 14.0  # L*a*b* distance
_HEIGHTS: Final = np.linspace(0.62, 0.94, 17)
_STEP: Final = 6.0  # degrees
_LIKELY: Final = 0.25  # how much worse than the best a trunk may fit, and still be tried
_STRAIGHT: Final = Limb(0, 0)
Points = NDArray[np.float64]  # [n, 2] as x, y


def find_joints(image: Image) -> Joints | None:
    """Places of `figure.JOINTS` [13, 2] in shares of the canvas; None where there is no figure."""
    figure = _figure(image)
    if figure is None:
        return None
    fits = [_fit(figure, *trunk) for trunk in _find_trunks(figure)]
    return max(fits, key=lambda fit: fit[0])[1]


def joints_right(image: Image, wanted: Joints, tolerance: float = 0.05) -> float:
    """The share of joints that lie within `tolerance`, a share of the canvas, of where they are `wanted` [13, 2]."""
    found = find_joints(image)
    if found is None:
        return 0.0
    return float((np.linalg.norm(found - wanted, axis=1) <= tolerance).mean())


def _figure(image: Image) -> NDArray[np.float32] | None:
    """1 where the figure is, -1 where it is not [_WORK, _WORK], soft at the edge."""
    small = cv2.resize(image, (_WORK, _WORK), interpolation=cv2.INTER_AREA)
    lab = to_lab(np.asarray(small, dtype=np.uint8))
    mask = np.linalg.norm(lab - most_common(lab.reshape(-1, 3)), axis=2) > _DIFFERENT
    if mask.mean() < 0.02:
        return None
    return np.asarray(cv2.GaussianBlur(mask.astype(np.float32) * 2 - 1, (0, 0), 0.7), dtype=np.float32)


def _fit(figure: NDArray[np.float32], trunk: float, top: Points, height: float) -> tuple[float, Joints]:
    """How well the best pose of this height fits, whose trunk fits by `trunk`, and its joints."""
    found = [_find_limb(figure, index, top, height) for index in range(4)]
    limbs = [limb for _, limb in found]
    pose = Pose((limbs[0], limbs[1], limbs[2], limbs[3]))
    return trunk + sum(score for score, _ in found), joints(pose) * height + top


def _find_trunks(figure: NDArray[np.float32]) -> list[tuple[float, Points, float]]:
    """For every height that is likely: how well the trunk fits, where the top of the head is (x, y), and the height."""
    found: list[tuple[float, Points, float]] = []
    inside, outside = _trunk_points()
    for height in _HEIGHTS:
        xs, ys = np.arange(0.3, 0.7, 0.01), np.arange(-0.02, 1.0 - height + 0.04, 0.01)
        tops = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 1, 2)
        score = _read(figure, inside * height + tops).mean(axis=1) - _read(figure, outside * height + tops).mean(axis=1)
        found.append((float(score.max()), tops[score.argmax(), 0], float(height)))
    best = max(score for score, _, _ in found)
    return [trunk for trunk in found if trunk[0] > best - _LIKELY]


@cache
def _trunk_points() -> tuple[Points, Points]:
    """Points on head, neck and trunk, and points beside head, neck and over the head, in heights from its top."""
    place = dict(zip(JOINTS, joints(Pose((_STRAIGHT,) * 4)), strict=True))
    nose, angles = place["nose"], np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    shoulder, hip = place["left_shoulder"], place["left_hip"]
    across, along = np.meshgrid(np.linspace(-1, 1, 7), np.linspace(0, 1, 8))
    breadth = shoulder[0] + (hip[0] - shoulder[0]) * along
    trunk = np.stack([across * breadth, shoulder[1] + (hip[1] - shoulder[1]) * along], axis=-1).reshape(-1, 2)
    inside = np.concatenate([nose + ring * HEAD * 0.85, nose + ring * HEAD * 0.4, trunk])
    around = nose + ring * HEAD * 1.25
    outside = around[around[:, 1] < nose[1] + 0.6 * HEAD]
    between = np.asarray([[0.0, hip[1] + 1.6 * LIMB + d] for d in (0.02, 0.05)])
    return inside, np.concatenate([outside, between])


def _find_limb(figure: NDArray[np.float32], index: int, top: Points, height: float) -> tuple[float, Limb]:
    """How well the best limb fits, of all that a body could have, and that limb."""
    limbs, inside, outside = _limb_points(index)
    covered = _read(figure, inside * height + top).mean(axis=1)
    beside = _read(figure, outside * height + top).mean(axis=1)
    score = covered - 0.5 * beside
    return float(score.max()), limbs[int(score.argmax())]


@cache
def _limb_points(index: int) -> tuple[list[Limb], Points, Points]:
    """All limbs tried, points on each [L, n, 2], and points beside and beyond each [L, m, 2], in heights."""
    arm = index < 2
    uppers = np.arange(0, 181, _STEP) if arm else np.arange(-6, 70, _STEP)
    bends = np.arange(-60, 97, _STEP) if arm else np.arange(-60, 25, _STEP)
    limbs = [Limb(float(upper), float(bend)) for upper, bend in product(uppers, bends)]
    side = "left" if index % 2 == 0 else "right"
    names = [f"{side}_{part}" for part in (("shoulder", "elbow", "wrist") if arm else ("hip", "knee", "ankle"))]
    rows = [JOINTS.index(name) for name in names]
    inside, outside = [], []
    for limb in limbs:
        chain = joints(Pose(tuple(limb if i == index else _STRAIGHT for i in range(4))))[rows]  # type: ignore[arg-type]
        on, off = _along(chain)
        inside.append(on)
        outside.append(off)
    return limbs, np.stack(inside), np.stack(outside)


def _along(chain: Points) -> tuple[Points, Points]:
    """Points on the two parts of a limb [3, 2], and points to both sides of the lower one and beyond its end."""
    inside, outside = [], []
    for start, end, first in ((chain[0], chain[1], 0.25), (chain[1], chain[2], 0.0)):
        along = (end - start) / np.linalg.norm(end - start)
        across = np.asarray([-along[1], along[0]])
        for share in np.linspace(first, 1, 7):
            middle = start + (end - start) * share
            inside += [middle, middle + across * LIMB * 0.7, middle - across * LIMB * 0.7]
            if share > 0.5:
                outside += [middle + across * LIMB * 1.6, middle - across * LIMB * 1.6]
    outside += [chain[2] + along * LIMB * 1.7] * 4
    return np.asarray(inside), np.asarray(outside)


def _read(figure: NDArray[np.float32], points: Points) -> NDArray[np.float32]:
    """The figure's values at points [..., 2] in shares of the canvas; off the canvas there is none."""
    at = np.floor(points * _WORK).astype(np.int64)
    on = ((at >= 0) & (at < _WORK)).all(axis=-1)
    at = at.clip(0, _WORK - 1)
    return np.where(on, figure[at[..., 1], at[..., 0]], np.float32(-1))

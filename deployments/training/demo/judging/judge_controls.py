"""Says how well a picture follows a hint, with OpenCV and no network: edges, depth, regions.

It reads the picture alone, and compares what it saw with the hint.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from deployments.training.demo.judging.judge import most_common
from deployments.training.demo.world.hints import region_colours
from deployments.training.demo.world.palette import to_lab
from deployments.training.demo.world.tableau import FLOOR, WALL
from deployments.training.demo.world.world import Image

TOLERANCE: Final = 2  # pixels that an edge may be off, at 256
_BLUR: Final = 2.0
_LOW, _HIGH = 30, 60  # of the gradient: soft pictures have faint edges
_DIFFERENT: Final = 14.0  # L*a*b* distance
_LEVELS: Final = 10


def edge_f1(image: Image, hint: Image) -> float:
    """F1 of the picture's edges [H, W, 3] against the hint's [H, W, 3]: the share of either that has the other within
    TOLERANCE pixels, as their harmonic mean.

    The picture's are read at half its size, where the grain of a small VAE averages out and is not taken for edges: so
    read, true pictures that went through that VAE reach 0.93.
    """
    height, width = image.shape[:2]
    half = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    edges = cv2.Canny(cv2.GaussianBlur(half, (0, 0), _BLUR), _LOW, _HIGH)
    seen = cv2.resize(edges, (width, height), interpolation=cv2.INTER_NEAREST) > 0
    wanted = hint[:, :, 0] > 127
    if not seen.any() or not wanted.any():
        return float(seen.any() == wanted.any())
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * TOLERANCE + 1, 2 * TOLERANCE + 1))
    near_wanted = cv2.dilate(wanted.astype(np.uint8), disc) > 0
    near_seen = cv2.dilate(seen.astype(np.uint8), disc) > 0
    precision, recall = float(near_wanted[seen].mean()), float(near_seen[wanted].mean())
    return 2 * precision * recall / max(precision + recall, 1e-9)


def depth_correlation(image: Image, hint: Image) -> float:
    """Rank correlation (Spearman) of how near things look in the picture with how near the hint says they are.

    Things fade into the wall with distance, so nearness is how far a colour is from the wall's. It is read in tenths of
    the nearest thing's: finer ranks would be of noise.
    """
    lab = to_lab(image)
    distance = np.linalg.norm(lab - most_common(lab.reshape(-1, 3)), axis=2)
    full = float(np.percentile(distance[distance > _DIFFERENT], 90)) if (distance > _DIFFERENT).any() else 1.0
    level = np.where(distance > _DIFFERENT, np.ceil((distance / full * _LEVELS).clip(1, _LEVELS)), 0)
    if np.ptp(level) == 0:
        return 0.0
    return float(spearmanr(level.ravel(), hint[:, :, 0].ravel()).statistic)


def region_iou(image: Image, hint: Image) -> float:
    """Mean intersection over union of wall, floor and thing, for those that the hint shows."""
    colours = region_colours()
    wall, floor = (np.all(hint == colours[name], axis=2) for name in (WALL, FLOOR))
    wanted = [wall, ~wall & ~floor] + ([floor] if floor.any() else [])
    seen = _regions_seen(image, bool(floor.any()))
    return float(np.mean([(a & b).sum() / max(1, (a | b).sum()) for a, b in zip(seen, wanted, strict=True)]))


def _regions_seen(image: Image, has_floor: bool) -> list[NDArray[np.bool_]]:
    """Wall, thing and, where there is one, floor: each pixel is what its colour is nearest to."""
    lab, side = to_lab(image), len(image)
    edge = max(2, side // 40)
    colours = [most_common(lab[:edge].reshape(-1, 3))]
    if has_floor:
        colours.append(most_common(lab[-edge:].reshape(-1, 3)))
    distances = [np.linalg.norm(lab - colour, axis=2) for colour in colours]
    rest = np.min(distances, axis=0) > _DIFFERENT
    if not rest.any():
        return [~rest, rest, rest][: 2 + has_floor]
    distances.append(np.linalg.norm(lab - most_common(lab[rest]), axis=2))
    nearest = np.argmin(distances, axis=0)
    wall, thing = nearest == 0, nearest == len(distances) - 1
    return [wall, thing, nearest == 1][: 2 + has_floor]

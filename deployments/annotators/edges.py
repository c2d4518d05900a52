"""Canny edges (Canny 1986), the hint of a `canny` ControlNet: white lines on black."""

import cv2
import numpy as np

from deployments.engine.inputs import Picture

LOW, HIGH = 100, 200


def detect_edges(picture: Picture, low_threshold: int = LOW, high_threshold: int = HIGH) -> Picture:
    """The edges of `picture` [H, W, 3], as [H, W, 3]. Thresholds are of the gradient, 0 to 1000 or so."""
    edges = cv2.Canny(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), low_threshold, high_threshold)
    return np.asarray(np.repeat(edges[:, :, None], 3, axis=2), dtype=np.uint8)

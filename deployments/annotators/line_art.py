"""Makes the hints of ControlNets that follow lines, by OpenCV alone: drawings, scribbles, soft edges, straight lines.

All are white on black. The networks that such ControlNets were trained with (lineart, HED, PiDiNet, M-LSD) have no home
with safetensors; these filters find the same lines in photos by their gradients.
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.engine.protocol.inputs import ImageArray

SCALES: Final = (1.0, 2.0, 4.0)
"""The standard deviations, in pixels, at which edges are looked for."""

LINEART_LOW, LINEART_HIGH, FAINTEST = 50, 100, 0.4
SCRIBBLE_BLUR, SCRIBBLE_LOW, SCRIBBLE_HIGH, SCRIBBLE_WIDTH = 2.5, 30, 60, 3
SHORTEST_LINE: Final = 0.03


def draw_lineart(image: ImageArray) -> ImageArray:
    """Draws fine lines along edges, the stronger the brighter, as a pencil would: [H, W, 3] as [H, W, 3]."""
    strength = detect_soft_edges(image)[:, :, 0] / 255
    along = cv2.Canny(image, LINEART_LOW, LINEART_HIGH).astype(np.float32)
    # A little wider than the pixel that Canny leaves, so that lines are smooth.
    return _to_hint(1.5 * cv2.GaussianBlur(along * (FAINTEST + (1 - FAINTEST) * strength), (0, 0), 0.6))


def draw_scribble(image: ImageArray) -> ImageArray:
    """Draws the outlines of what is large in a firm hand, white or nothing: [H, W, 3] as [H, W, 3]."""
    large = cv2.GaussianBlur(image, (0, 0), SCRIBBLE_BLUR)
    pen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (SCRIBBLE_WIDTH, SCRIBBLE_WIDTH))
    return _to_hint(np.asarray(cv2.dilate(cv2.Canny(large, SCRIBBLE_LOW, SCRIBBLE_HIGH), pen), dtype=np.uint8))


def detect_soft_edges(image: ImageArray) -> ImageArray:
    """Detects edges, the stronger the brighter: [H, W, 3] as [H, W, 3].

    The largest gradient of any channel and any of a few scales, each multiplied by its scale, so that blurred edges
    count as much as sharp ones (Lindeberg 1998). The strongest hundredth of all pixels that have some is white.
    """
    values = image.astype(np.float32)
    strength = np.max([sigma * _gradient(values, sigma) for sigma in SCALES], axis=0)
    some = strength[strength > 8]
    return _to_hint(strength * 255 / float(np.percentile(some, 99)) if some.size else np.zeros_like(strength))


def detect_straight_lines(image: ImageArray) -> ImageArray:
    """Detects straight lines and draws them one pixel wide (LSD: Grompone von Gioi et al. 2010): [H, W, 3] as
    [H, W, 3].

    Lines shorter than a small share of the diagonal are texture, and left out.
    """
    height, width = image.shape[:2]
    detector = cv2.createLineSegmentDetector()
    found = detector.detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    hint = np.zeros((height, width), dtype=np.uint8)
    # OpenCV 4 and 5 differ in the axes.
    for x1, y1, x2, y2 in () if found is None else found.reshape(-1, 4).tolist():
        if np.hypot(x2 - x1, y2 - y1) >= SHORTEST_LINE * np.hypot(width, height):
            cv2.line(hint, (round(x1), round(y1)), (round(x2), round(y2)), 255)
    return _to_hint(hint)


def _gradient(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Returns the length of the gradient [H, W], in colour values a pixel, of the channel in which it is largest."""
    smooth = cv2.GaussianBlur(values, (0, 0), sigma)
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, dx, 1 - dx, scale=0.125) for dx in (1, 0))
    length: NDArray[np.float32] = np.hypot(across, down).max(axis=2)
    return length


def _to_hint(grey: NDArray[np.floating] | NDArray[np.uint8]) -> ImageArray:
    """Returns grey values [H, W] as an image [H, W, 3]."""
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)

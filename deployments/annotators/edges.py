"""Makes the hints of `canny` ControlNets: Canny edges (Canny 1986), white lines on black."""

import cv2
import numpy as np

from deployments.engine.protocol.inputs import ImageArray

LOW, HIGH = 100, 200


def detect_edges(image: ImageArray, low_threshold: int = LOW, high_threshold: int = HIGH) -> ImageArray:
    """Detects the edges of `image` [H, W, 3], as [H, W, 3]. Thresholds are of the gradient, 0 to 1000 or so.

    In colour, where each pixel's gradient is that of the channel that changes most: a grey copy would lose orange on
    cyan, and ControlNets have learnt from edges of colour images.
    """
    edges = cv2.Canny(image, low_threshold, high_threshold)
    return np.asarray(np.repeat(edges[:, :, None], 3, axis=2), dtype=np.uint8)

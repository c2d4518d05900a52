"""Makes the hints of `shuffle` ControlNets: the image's colours and textures, its shapes torn apart."""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.engine.protocol.inputs import ImageArray

SMOOTHNESS: Final = 256
"""The pixels from one random place of the flow to the next."""

_SEED: Final = 1


def shuffle_content(image: ImageArray) -> ImageArray:
    """Takes each pixel of [H, W, 3] from another place, by a smooth random flow that covers the whole image.

    As ControlNet 1.1's own, but always the same flow for a size: an image has one hint.
    """
    height, width = image.shape[:2]
    random = np.random.default_rng(_SEED)
    across, down = (_smooth_noise(random, height, width) * (side - 1) for side in (width, height))
    shuffled = cv2.remap(image, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(shuffled, dtype=np.uint8)


def _smooth_noise(random: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Returns smooth noise [H, W] from 0 to 1, both of which occur."""
    coarse = random.random((height // SMOOTHNESS + 4, width // SMOOTHNESS + 4), dtype=np.float32)
    rows, columns = (side * SMOOTHNESS for side in coarse.shape)
    fine = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    inside = fine[SMOOTHNESS : SMOOTHNESS + height, SMOOTHNESS : SMOOTHNESS + width]
    low, high = float(inside.min()), float(inside.max())
    return np.asarray((inside - low) / max(high - low, 1e-6), dtype=np.float32)

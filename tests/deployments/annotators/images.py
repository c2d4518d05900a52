"""Images to annotate."""

import numpy as np

from deployments.engine.protocol.inputs import ImageArray


def patches(width: int = 90, height: int = 68, seed: int = 0) -> ImageArray:
    """Squares of random colours."""
    shape = (height // 8 + 1, width // 8 + 1, 3)
    squares = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return squares.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]

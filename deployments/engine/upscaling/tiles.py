"""Enlarges a picture tile by tile, so that its size bounds neither memory nor the time of one call. No torch.

Neighbouring tiles overlap. What lies close to a tile's edge has seen little of its surroundings, and is not used; over
the middle of the overlap one tile fades into the next.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deployments.engine.protocol.inputs import ImageArray

OVERLAP: Final = 32
"""Pixels of the picture, as it is before, that two neighbours have in common: a quarter of them at each end is not
used.
"""

STEP: Final = 4
"""Tiles begin at multiples of it: networks that pack pixels into channels then pack the same ones as in the whole."""


def enlarge_in_tiles(
    picture: ImageArray, scale: int, side: int, enlarge: Callable[[ImageArray], ImageArray]
) -> ImageArray:
    """Returns `picture` [H, W, 3] enlarged `scale` times, by `enlarge` of tiles of at most `side` x `side` pixels.

    `side` is a multiple of STEP, and more than OVERLAP.
    """
    height, width = picture.shape[:2]
    enlarged = np.zeros((height * scale, width * scale, 3), np.uint8)
    for top, bottom in find_windows(height, side):
        strip = np.zeros(((bottom - top) * scale, width * scale, 3), np.uint8)
        for left, right in find_windows(width, side):
            tile = enlarge(picture[top:bottom, left:right])
            _fade_over(strip[:, left * scale : right * scale], tile, _fade_in(tile.shape[1], scale, left)[:, None])
        # Whole strips: where four tiles meet, each edge is faded out along its own axis.
        _fade_over(enlarged[top * scale : bottom * scale], strip, _fade_in(len(strip), scale, top)[:, None, None])
    return enlarged


def find_windows(length: int, side: int) -> list[tuple[int, int]]:
    """Returns the beginnings and ends of the tiles along an axis of `length` pixels."""
    if length <= side:
        return [(0, length)]
    last = -(-(length - side) // STEP) * STEP
    return [(start, min(start + side, length)) for start in (*range(0, last, side - OVERLAP), last)]


def _fade_over(place: ImageArray, new: ImageArray, share: NDArray[np.float32]) -> None:
    place[:] = np.rint(place + (new.astype(np.float32) - place) * share)


def _fade_in(pixels: int, scale: int, start: int) -> NDArray[np.float32]:
    """Returns by how much a tile that begins at `start` replaces what is there, along one axis of its result."""
    if start == 0:
        return np.ones(pixels, np.float32)
    places = (np.arange(pixels, dtype=np.float32) + 0.5) / scale
    return np.clip((places - OVERLAP / 4) / (OVERLAP / 2), 0.0, 1.0)

"""Pictures in tiles are those in one piece, and every pixel is covered."""

from itertools import pairwise

import numpy as np
import pytest

from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.upscaling.tiles import OVERLAP, STEP, enlarge_in_tiles, find_windows


@pytest.mark.parametrize("length", [1, 63, 64, 65, 66, 67, 95, 96, 97, 127, 128, 129, 500, 1001])
@pytest.mark.parametrize("side", [64, 96])
def test_windows_cover_an_axis_and_overlap_enough(length: int, side: int) -> None:
    windows = find_windows(length, side)
    assert windows[0][0] == 0
    assert windows[-1][1] == length
    assert all(start % STEP == 0 and start < end <= start + side for start, end in windows)
    assert all(this[1] - after[0] >= OVERLAP for this, after in pairwise(windows))


@pytest.mark.parametrize(("height", "width"), [(40, 200), (200, 40), (150, 171), (64, 64)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_what_looks_at_single_pixels_comes_back_whole(height: int, width: int, scale: int) -> None:
    picture = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)

    def repeat(tile: ImageArray) -> ImageArray:
        return tile.repeat(scale, 0).repeat(scale, 1)

    assert np.array_equal(enlarge_in_tiles(picture, scale, 64, repeat), repeat(picture))


def test_one_tile_fades_into_the_next_without_a_step() -> None:
    tiles = iter((0, 200))
    made = enlarge_in_tiles(
        np.zeros((8, 96, 3), np.uint8), 2, 64, lambda tile: np.full((16, tile.shape[1] * 2, 3), next(tiles), np.uint8)
    )
    along = made[4, :, 0].astype(int)
    assert (along[0], along[-1]) == (0, 200)
    # Two tiles that have nothing in common differ by 200; no two neighbours do by more than their share of it.
    assert np.abs(np.diff(along)).max() <= 200 / OVERLAP + 1
    # A quarter of the overlap at each end is one tile's alone: its edge is not seen.
    assert along[: 2 * (32 + OVERLAP // 4)].max() == 0
    assert along[2 * (64 - OVERLAP // 4) :].min() == 200

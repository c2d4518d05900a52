"""A mark cannot be seen, survives what happens to pictures, and is found in no picture that has none."""

from collections.abc import Callable

import numpy as np
import pytest

from deployments.engine.protocol.inputs import ImageArray
from deployments.watermark import patterns
from deployments.watermark.spread_spectrum import SpreadSpectrum
from tests.deployments.watermark.pictures import as_jpeg, cropped, drawing, photo, psnr, resized

PAYLOAD = b"\x00\x7f\x80\xff"
METHOD = SpreadSpectrum()

Make = Callable[[int, int], ImageArray]
Change = Callable[[ImageArray], ImageArray]

CHANGES: dict[str, Change] = {
    "nothing": lambda picture: picture,
    "JPEG 75": lambda picture: as_jpeg(picture, 75),
    "half size": lambda picture: resized(picture, 256, 256),
    "cropped by a tenth": lambda picture: cropped(picture, 0.1),
    "cropped, then JPEG 75": lambda picture: as_jpeg(cropped(picture, 0.1), 75),
    "another usual size": lambda picture: resized(picture, 400, 400),
}


@pytest.mark.parametrize("make", [drawing, photo])
@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_mark_survives(make: Make, change: Change) -> None:
    found = METHOD.find(change(METHOD.mark(make(512, 1), PAYLOAD)))
    assert found is not None
    assert found.payload == PAYLOAD


@pytest.mark.parametrize("make", [drawing, photo])
def test_a_mark_cannot_be_seen(make: Make) -> None:
    picture = make(512, 2)
    marked = METHOD.mark(picture, PAYLOAD)
    assert psnr(picture, marked) > 40
    assert np.abs(marked.astype(int) - picture).max() <= 12
    assert abs(marked.mean() - picture.mean()) < 0.1


@pytest.mark.parametrize("make", [drawing, photo])
@pytest.mark.parametrize("side", [64, 200, 512])
def test_no_mark_is_found_where_there_is_none(make: Make, side: int) -> None:
    assert METHOD.find(make(side, 3)) is None


@pytest.mark.parametrize("shape", [(16, 16), (64, 512), (2048, 64), (256, 256)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_and_narrow_pictures_break_nothing(shape: tuple[int, int], value: int) -> None:
    picture = np.full((*shape, 3), value, np.uint8)
    assert METHOD.mark(picture, PAYLOAD).shape == picture.shape
    assert METHOD.find(picture) is None


def test_marking_changes_neither_its_input_nor_from_call_to_call() -> None:
    picture = photo(256)
    kept = picture.copy()
    first, second = METHOD.mark(picture, PAYLOAD), METHOD.mark(picture, PAYLOAD)
    assert np.array_equal(picture, kept)
    assert np.array_equal(first, second)


def test_every_release_looks_for_the_same_patterns() -> None:
    """What was marked years ago must be found."""
    assert [round(float(tile[3, 5]), 2) for tile in patterns.patterns()] == [
        -0.74,
        -0.81,
        -0.65,
        -1.5,
        -0.71,
        1.17,
        0.73,
    ]

"""A way to mark pictures is named, and what travels is its name and what it shall write."""

import pickle

import numpy as np
import pytest

from deployments.engine.protocol.inputs import ImageArray
from deployments.watermark.methods import FoundMark, Watermark, load_method
from deployments.watermark.spread_spectrum import SpreadSpectrum
from tests.deployments.watermark.pictures import photo


class Inverting:
    """Somebody else's method."""

    def mark(self, picture: ImageArray, payload: bytes) -> ImageArray:
        return 255 - picture

    def find(self, picture: ImageArray) -> FoundMark | None:
        return FoundMark(b"else", 1.0)


def test_a_mark_is_made_where_it_arrives() -> None:
    picture = photo(256)
    arrived = pickle.loads(pickle.dumps(Watermark(b"dark")))
    assert np.array_equal(arrived.apply(picture), SpreadSpectrum().mark(picture, b"dark"))


def test_another_method_is_found_by_its_name() -> None:
    name = f"{__name__}:Inverting"
    assert load_method(name) is load_method(name)
    assert np.array_equal(Watermark(b"dark", name).apply(np.zeros((8, 8, 3), np.uint8)), np.full((8, 8, 3), 255))


@pytest.mark.parametrize("name", ["", "nothing", "nowhere:Nothing", f"{__name__}:Nothing", ":", "a:b"])
def test_a_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"package\.module:Class"):
        load_method(name)


class HalfAMethod:
    """Marks, and cannot find."""

    def mark(self, picture: ImageArray, payload: bytes) -> ImageArray:
        return picture


def test_a_class_that_cannot_do_both_is_refused() -> None:
    with pytest.raises(ValueError, match="`find`"):
        load_method(f"{__name__}:HalfAMethod")

"""Each named mask covers what its name says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.engine.protocol.errors import InvalidParameter
from deployments.uploads.masks import MASK_TYPES, create_mask


def covered_share(mask_type: str, width: int = 80, height: int = 40) -> NDArray[np.bool_]:
    return np.asarray(np.asarray(create_mask(width, height, mask_type)) == 255, dtype=np.bool_)


@pytest.mark.parametrize(
    ("mask_type", "share"),
    [("full", 1.0), ("center", 0.25), ("top", 0.5), ("left", 0.5), ("top_left", 0.25), ("bottom_right", 0.25)],
)
def test_a_mask_covers_its_share(mask_type: str, share: float) -> None:
    assert covered_share(mask_type).mean() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(("one", "other"), [("top", "bottom"), ("left", "right"), ("top_left", "bottom_right")])
def test_opposites_are_each_others_mirror_image_and_never_overlap(one: str, other: str) -> None:
    assert (covered_share(one)[::-1, ::-1] == covered_share(other)).all()
    assert not (covered_share(one) & covered_share(other)).any()


@pytest.mark.parametrize("mask_type", MASK_TYPES)
@pytest.mark.parametrize("size", [(16, 16), (17, 301), (1000, 64)])
def test_every_mask_is_black_and_white_of_the_right_size_and_not_empty(mask_type: str, size: tuple[int, int]) -> None:
    mask = create_mask(*size, mask_type)
    assert (mask.mode, mask.size) == ("L", size)
    assert set(mask.tobytes()) <= {0, 255}
    assert covered_share(mask_type, *size).any()


def test_a_border_goes_all_around_and_an_ellipse_lies_inside_its_box() -> None:
    border = covered_share("border")
    assert border[0].all()
    assert border[-1].all()
    assert border[:, 0].all()
    assert border[:, -1].all()
    assert not border[20, 40]
    assert (covered_share("ellipse") & ~covered_share("center")).sum() == 0
    assert covered_share("ellipse")[20, 40]


def test_a_box_is_given_in_shares() -> None:
    mask = np.asarray(create_mask(100, 50, box=(0.1, 0.2, 0.6, 0.4)))
    assert (np.argwhere(mask)[0] == (10, 10)).all()
    assert (np.argwhere(mask)[-1] == (19, 59)).all()


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0, 0.9, 1, 0.1), (-0.1, 0, 1, 1), (0, 0, 1.1, 1)])
def test_a_box_that_is_none_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InvalidParameter):
        create_mask(64, 64, box=box)


def test_an_unknown_mask_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidParameter, match="bottom_left"):
        create_mask(64, 64, "middle")

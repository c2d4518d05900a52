"""Lines are found where they are, and nowhere else; flat images have none."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from deployments.annotators.catalogue import BUILT_IN
from deployments.annotators.line_art import detect_soft_edges, detect_straight_lines, draw_lineart, draw_scribble
from deployments.engine.protocol.inputs import ImageArray

LINES = [draw_lineart, draw_scribble, detect_soft_edges, detect_straight_lines]
Hint = Callable[[ImageArray], ImageArray]


def sheet(height: int = 160, width: int = 200) -> ImageArray:
    return np.full((height, width, 3), 230, dtype=np.uint8)


def drawn(blur: float = 0.0) -> ImageArray:
    """A dark frame of two pixels on paper."""
    image = sheet()
    cv2.rectangle(image, (50, 40), (150, 120), (30, 30, 30), 2)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), blur), dtype=np.uint8) if blur else image


def near_frame(within: int) -> np.ndarray:
    mask = np.zeros((160, 200), dtype=np.uint8)
    cv2.rectangle(mask, (50, 40), (150, 120), 255, 2 * within + 1)
    return mask > 0


@pytest.mark.parametrize("make", LINES)
def test_a_drawn_line_is_bright_and_the_paper_is_black(make: Hint) -> None:
    hint = make(drawn())
    assert hint.shape == (160, 200, 3)
    assert hint.dtype == np.uint8
    assert (hint == hint[:, :, :1]).all()
    assert hint[~near_frame(12)].max() < 20
    # Along each side, nearly everywhere.
    top, left = hint[36:45, 60:140, 0].max(axis=0), hint[50:110, 46:55, 0].max(axis=1)
    assert min(np.mean(top > 120), np.mean(left > 120)) > 0.95


@pytest.mark.parametrize("make", [*LINES, BUILT_IN["canny"]])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_flat_image_has_no_lines(make: Hint, value: int) -> None:
    assert make(np.full((64, 96, 3), value, dtype=np.uint8)).max() == 0


@pytest.mark.parametrize("make", [draw_scribble, detect_straight_lines])
def test_firm_lines_are_white_or_nothing(make: Hint) -> None:
    assert set(np.unique(make(drawn()))) == {0, 255}


def test_lineart_is_as_strong_for_pencil_as_for_ink() -> None:
    ink, pencil = drawn(), sheet()
    cv2.rectangle(pencil, (50, 40), (150, 120), (150, 150, 150), 2)
    bright = [float(draw_lineart(image)[near_frame(1)].mean()) for image in (ink, pencil)]
    assert bright[1] == pytest.approx(bright[0], rel=0.2)


def test_a_blurred_edge_counts_as_much_as_a_sharp_one() -> None:
    sharp, soft = (detect_soft_edges(drawn(blur))[36:45, 60:140].max() for blur in (0.0, 2.0))
    assert soft > 0.8 * int(sharp)


@pytest.mark.parametrize("make", [draw_lineart, draw_scribble, detect_soft_edges])
def test_the_border_of_two_colours_of_one_brightness_is_seen(make: Hint) -> None:
    image = sheet()
    image[:, :100], image[:, 100:] = (200, 80, 0), (0, 80 + 102, 0)
    assert np.mean(make(image)[10:150, 94:106].max(axis=(1, 2)) > 200) > 0.95


def test_short_strokes_are_no_straight_lines() -> None:
    image = sheet()
    cv2.line(image, (20, 20), (23, 20), (0, 0, 0), 1)
    assert detect_straight_lines(image).max() == 0


@pytest.mark.parametrize("kind", BUILT_IN)
@pytest.mark.parametrize("size", [(16, 16), (64, 400), (401, 67)])
def test_every_hint_has_the_size_of_its_image_and_is_always_the_same(kind: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    before = image.copy()
    hint = BUILT_IN[kind](image)
    assert hint.shape == image.shape
    assert hint.dtype == np.uint8
    assert (BUILT_IN[kind](image) == hint).all()
    assert (image == before).all()

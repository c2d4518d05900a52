"""ADE20K's colours: a segmentation ControlNet reads meaning from exact values."""

import pytest

from deployments.annotators.palette import ADE20K

ANCHORS = {
    0: (120, 120, 120),  # wall
    1: (180, 120, 120),  # building
    2: (6, 230, 230),  # sky
    3: (80, 50, 50),  # floor
    4: (4, 200, 3),  # tree
    5: (120, 120, 80),  # ceiling
    6: (140, 140, 140),  # road
    9: (4, 250, 7),  # grass
    12: (150, 5, 61),  # person
    15: (255, 6, 82),  # table
    20: (0, 102, 200),  # car
    149: (92, 0, 255),  # flag
}


@pytest.mark.parametrize(("label", "colour"), ANCHORS.items())
def test_a_label_has_its_published_colour(label: int, colour: tuple[int, int, int]) -> None:
    assert ADE20K[label] == colour


def test_only_road_and_skyscraper_share_a_colour() -> None:
    assert len(ADE20K) == 150
    shared = [label for label, colour in enumerate(ADE20K) if ADE20K.count(colour) > 1]
    assert shared == [6, 48]


def test_every_colour_can_be_stored_in_a_byte_per_channel() -> None:
    assert all(len(colour) == 3 and all(0 <= channel <= 255 for channel in colour) for colour in ADE20K)

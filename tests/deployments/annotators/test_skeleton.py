"""Skeletons in OpenPose's drawing: what a pose ControlNet knows how to read."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.annotators.skeleton import COLOURS, JOINTS, LIMBS, draw_skeleton

SIZE = 512


def standing() -> NDArray[np.float64]:
    """Someone who faces the camera, all joints seen and well apart."""
    places = {
        "nose": (256, 80), "neck": (256, 140),
        "right shoulder": (190, 145), "right elbow": (150, 220), "right wrist": (120, 290),
        "left shoulder": (322, 145), "left elbow": (362, 220), "left wrist": (392, 290),
        "right hip": (215, 290), "right knee": (205, 380), "right ankle": (200, 470),
        "left hip": (297, 290), "left knee": (307, 380), "left ankle": (312, 470),
        "right eye": (236, 62), "left eye": (276, 62), "right ear": (210, 72), "left ear": (302, 72),
    }  # fmt: skip
    return np.asarray([[*places[joint], 1.0] for joint in JOINTS])


def colour_at(image: NDArray[np.uint8], x: float, y: float) -> tuple[Any, ...]:
    return tuple(image[round(y), round(x)].tolist())


@pytest.mark.parametrize("joint", range(len(JOINTS)), ids=JOINTS)
def test_a_joint_has_openposes_colour(joint: int) -> None:
    person = standing()
    assert colour_at(draw_skeleton([person], SIZE, SIZE), *person[joint, :2]) == COLOURS[joint]


@pytest.mark.parametrize("limb", range(len(LIMBS)))
def test_a_limb_has_its_colour_at_six_tenths(limb: int) -> None:
    person = standing()
    middle = person[list(LIMBS[limb]), :2].mean(axis=0)
    dimmed = tuple(int(channel * 0.6) for channel in COLOURS[limb])
    assert colour_at(draw_skeleton([person], SIZE, SIZE), *middle) == dimmed


def test_the_colour_wheel_starts_at_red_and_goes_by_green_and_blue() -> None:
    assert [COLOURS[i] for i in (0, 6, 12, 17)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 85)]
    assert len(set(COLOURS)) == len(JOINTS) == 18
    assert len(set(LIMBS)) == 17


def test_a_joint_nobody_is_sure_of_is_left_out_with_its_limbs() -> None:
    person = standing()
    wrist = JOINTS.index("left wrist")
    person[wrist, 2] = 0.29
    image = draw_skeleton([person], SIZE, SIZE)
    elbow_to_wrist = person[[JOINTS.index("left elbow"), wrist], :2].mean(axis=0)
    assert colour_at(image, *person[wrist, :2]) == (0, 0, 0)
    assert colour_at(image, *elbow_to_wrist) == (0, 0, 0)
    assert colour_at(draw_skeleton([person], SIZE, SIZE, threshold=0.2), *person[wrist, :2]) == COLOURS[wrist]


def test_nobody_is_black() -> None:
    image = draw_skeleton([], 96, 64)
    assert image.shape == (64, 96, 3)
    assert not image.any()


def test_all_people_are_drawn() -> None:
    left, right = standing(), standing()
    left[:, 0] -= 120
    right[:, 0] += 100
    image = draw_skeleton([left, right], SIZE, SIZE)
    for person in (left, right):
        assert colour_at(image, *person[0, :2]) == COLOURS[0]


def test_lines_keep_their_share_of_the_picture() -> None:
    """A hint scaled down and a hint drawn small look alike to the ControlNet."""
    small = standing() * [0.5, 0.5, 1.0]
    shares = [
        (draw_skeleton([person], side, side).any(axis=2)).mean() for person, side in ((standing(), 512), (small, 256))
    ]
    assert shares[1] == pytest.approx(shares[0], rel=0.15)


def test_a_joint_outside_the_picture_is_left_out_with_its_limbs() -> None:
    person = standing()
    person[JOINTS.index("left wrist"), :2] = (1e12, 290)
    person[JOINTS.index("nose"), 1] = -3
    person[JOINTS.index("left elbow"), :2] = np.nan
    unsure = standing()
    unsure[[JOINTS.index(joint) for joint in ("left wrist", "nose", "left elbow")], 2] = 0
    assert (draw_skeleton([person], SIZE, SIZE) == draw_skeleton([unsure], SIZE, SIZE)).all()

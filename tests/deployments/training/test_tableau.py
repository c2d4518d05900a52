"""Tableaux, their hints and their judges: what is drawn is what the hint says is what is seen."""

from __future__ import annotations

import random
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from deployments.annotators.edges import detect_edges
from deployments.training.demo.judging.judge_controls import depth_correlation, edge_f1, region_iou
from deployments.training.demo.judging.judge_pose import find_joints, joints_right
from deployments.training.demo.learning.lessons import (
    around,
    hole,
    with_depth,
    with_edges,
    with_hole,
    with_pose,
    with_regions,
)
from deployments.training.demo.world.figure import HEAD, JOINTS, Limb, Pose, joints
from deployments.training.demo.world.hints import CLASSES, depth_hint, openpose, pose_hint, segmentation_hint
from deployments.training.demo.world.silhouettes import SILHOUETTES
from deployments.training.demo.world.tableau import (
    FLOOR,
    PERSON,
    WALL,
    Tableau,
    Thing,
    draw_tableau,
    nearness,
    random_depths,
    random_floor,
    random_people,
    regions,
    tableau_of,
)
from deployments.training.demo.world.world import Image, Scene, draw

SIZE = 256
CASES = 8


def soft(image: Image) -> Image:
    """About as soft as the demo VAE leaves it."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 2.5), dtype=np.uint8)


def tableaux(make: Callable[[random.Random], Tableau], seed: int) -> list[Tableau]:
    rng = random.Random(seed)
    return [make(rng) for _ in range(CASES)]


@pytest.mark.parametrize(
    ("make", "hint", "score", "enough"),
    [
        (random_depths, lambda t: detect_edges(draw_tableau(t, SIZE)), edge_f1, 0.85),
        (random_depths, lambda t: depth_hint(t, SIZE), depth_correlation, 0.85),
        (random_floor, lambda t: segmentation_hint(t, SIZE), region_iou, 0.9),
    ],
    ids=["edges", "depth", "regions"],
)
def test_a_picture_follows_its_own_hint_and_no_other(
    make: Callable[[random.Random], Tableau],
    hint: Callable[[Tableau], Image],
    score: Callable[[Image, Image], float],
    enough: float,
) -> None:
    mine, others = tableaux(make, 1), tableaux(make, 2)
    own = [score(soft(draw_tableau(tableau, SIZE)), hint(tableau)) for tableau in mine]
    foreign = [
        score(soft(draw_tableau(tableau, SIZE)), hint(other)) for tableau, other in zip(mine, others, strict=True)
    ]
    assert np.mean(own) >= enough
    assert np.mean(foreign) <= 0.65


def test_a_blank_picture_follows_nothing() -> None:
    blank = np.full((SIZE, SIZE, 3), 120, dtype=np.uint8)
    tableau = tableaux(random_floor, 3)[0]
    assert edge_f1(blank, detect_edges(draw_tableau(tableau, SIZE))) == 0
    assert depth_correlation(blank, depth_hint(tableaux(random_depths, 3)[0], SIZE)) == 0
    assert region_iou(blank, segmentation_hint(tableau, SIZE)) < 0.4
    assert find_joints(blank) is None


def test_joints_are_found_where_they_were_drawn_and_not_where_they_were_not() -> None:
    people = [tableau.person for tableau in tableaux(random_people, 4)]
    for tableau, other in zip(tableaux(random_people, 4), reversed(people), strict=True):
        assert tableau.person is not None
        assert other is not None
        picture = soft(draw_tableau(tableau, SIZE))
        assert joints_right(picture, tableau.person.joints) >= 0.9
        assert joints_right(picture, other.joints) < 0.7


def test_left_is_the_figures_own_left() -> None:
    waving = Pose((Limb(120, 0), Limb(20, 0), Limb(5, 0), Limb(5, 0)))
    at = dict(zip(JOINTS, joints(waving), strict=True))
    assert at["left_wrist"][1] < at["nose"][1] + HEAD < at["right_wrist"][1]
    assert at["left_wrist"][0] > 0 > at["right_wrist"][0]


def test_openpose_joints_have_a_neck_between_the_shoulders_and_no_eyes() -> None:
    at = joints(Pose((Limb(30, 0),) * 4))
    pose = openpose(at)
    assert pose.shape == (18, 3)
    np.testing.assert_allclose(pose[1, :2], (pose[2, :2] + pose[5, :2]) / 2)
    assert pose[:14, 2].tolist() == [1.0] * 14
    assert pose[14:, 2].tolist() == [0.0] * 4


def test_near_things_hide_far_ones_and_have_more_of_their_colour() -> None:
    far, near = Thing("box", (0.4, 0.5), 0.4, 0.4), Thing("box", (0.6, 0.5), 0.4, 1.0)
    tableau = Tableau("red", "white", (near, far))
    depth = nearness(tableau, SIZE)
    assert depth[128, 128] == 1.0
    assert depth[128, 70] == pytest.approx(0.4, abs=0.01)
    assert depth[10, 10] == 0
    picture = draw_tableau(tableau, SIZE).astype(int)
    away = [np.abs(picture[y, x] - picture[10, 10]).sum() for y, x in ((128, 190), (128, 62))]
    assert away[0] > 2 * away[1] > 0


def test_regions_name_what_is_there() -> None:
    for tableau in tableaux(random_floor, 5):
        named = regions(tableau, 64)
        thing = PERSON if tableau.person else tableau.things[0].product
        assert set(np.unique(named)) == {WALL, FLOOR, thing}
        assert named[0, 0] == WALL
        assert named[63, 0] == FLOOR
    assert set(CLASSES) == {WALL, FLOOR, PERSON, *SILHOUETTES}


def test_a_scene_as_a_tableau_is_the_same_picture() -> None:
    scene = Scene("shoe", "green", "pink", size="small", position="left", shift=(0.01, -0.01))
    np.testing.assert_array_equal(draw_tableau(tableau_of(scene), 96), draw(scene, 96))


def test_a_box_around_a_product_covers_it() -> None:
    rng = random.Random(6)
    for product in SILHOUETTES:
        scene = Scene(product, "black", "white", size="medium", position="top")
        mask = hole(around(rng, scene), SIZE)
        assert (draw(scene, SIZE)[mask == 0] > 200).all()
        assert (draw(scene, SIZE)[mask > 0] < 100).any()


def test_an_ellipse_goes_through_the_corners_of_its_box() -> None:
    box, round_ = hole((0.3, 0.3, 0.7, 0.6), SIZE), hole((0.3, 0.3, 0.7, 0.6), SIZE, round_=True)
    assert ((box > 0) <= (round_ > 0)).mean() > 0.99
    assert (round_ > 0).sum() > (box > 0).sum()


def test_every_lesson_brings_what_its_member_is_shown() -> None:
    rng = random.Random(7)
    for teach in (with_edges, with_depth, with_regions, with_pose):
        lesson = teach(rng, 64)
        assert lesson.hint is not None
        assert lesson.hint.shape == lesson.image.shape == (64, 64, 3)
        assert lesson.hint.any()
    lesson = with_hole(rng, 64)
    assert lesson.mask is not None
    assert set(np.unique(lesson.mask)) <= {0, 255}


def test_a_skeleton_lies_on_its_figure() -> None:
    for tableau in tableaux(random_people, 8):
        assert tableau.person is not None
        skeleton = pose_hint(tableau.person, SIZE).any(axis=2)
        shown = regions(tableau, SIZE) == PERSON
        assert shown[skeleton].mean() > 0.95

"""Pose hints: keypoints land where the network saw them, on the people that the detector found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForObjectDetection, VitPoseForPoseEstimation

from deployments.annotators.networks import Network, load_network
from deployments.annotators.pose import KEYPOINTS, MOST_PEOPLE, PersonDetector, PoseAnnotator, to_openpose
from deployments.annotators.skeleton import COLOURS, JOINTS
from deployments.annotators.spec import PoseSpec
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import PartSpec
from tests.deployments.annotators.images import patches
from tests.deployments.annotators.tiny import save_tiny_detector, save_tiny_pose

CPU = torch.device("cpu")

# Where a picture of 96 x 128 lies in heat maps of 12 x 16, whose crop is a quarter larger, by ViTPose's rules.
WIDTH, HEIGHT = 96, 128
MAP_WIDTH, MAP_HEIGHT = 12, 16


class SeesEachKeypointSomewhere(nn.Module):
    """In place of ViTPose's head: a peak per keypoint, at (3 + i % 6, 3 + i // 2) of the heat map."""

    def forward(self, features: Tensor, flip_pairs: Tensor | None = None) -> Tensor:
        y, x = torch.meshgrid(torch.arange(MAP_HEIGHT), torch.arange(MAP_WIDTH), indexing="ij")
        peaks = [((x - 3 - i % 6) ** 2 + (y - 3 - i // 2) ** 2).div(-2.0).exp() for i in range(len(KEYPOINTS))]
        return torch.stack(peaks)[None].repeat(len(features), 1, 1, 1)


def in_picture(i: int) -> tuple[float, float]:
    """Where keypoint i is."""
    x, y = 3 + i % 6, 3 + i // 2
    left, top = WIDTH * (0.5 - 0.625), HEIGHT * (0.5 - 0.625)
    return left + x * WIDTH * 1.25 / (MAP_WIDTH - 1), top + y * HEIGHT * 1.25 / (MAP_HEIGHT - 1)


def pose_network(folder: Path) -> Network:
    return load_network("it", PartSpec(str(save_tiny_pose(folder))), VitPoseForPoseEstimation, CPU)


def person(**scores: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Keypoint i at (i, 10 i), seen for certain unless `scores` say otherwise."""
    sure = [scores.get(name.replace(" ", "_"), 1.0) for name in KEYPOINTS]
    return np.asarray([[i, 10.0 * i, score] for i, score in enumerate(sure)])


def test_every_keypoint_becomes_the_joint_of_its_name() -> None:
    joints = to_openpose(person())
    assert joints.shape == (18, 3)
    for name, (x, y, score) in zip(JOINTS, joints, strict=True):
        if name != "neck":
            i = KEYPOINTS.index(name)
            assert (x, y, score) == (i, 10 * i, 1)


def test_the_neck_is_between_the_shoulders_and_seen_when_both_are() -> None:
    neck = JOINTS.index("neck")
    left, right = KEYPOINTS.index("left shoulder"), KEYPOINTS.index("right shoulder")
    assert to_openpose(person())[neck].tolist() == [(left + right) / 2, 5.0 * (left + right), 1]
    assert to_openpose(person(left_shoulder=0.1))[neck, 2] == 0.1


def test_a_joint_is_drawn_where_the_network_saw_it(tmp_path: Path) -> None:
    network = pose_network(tmp_path)
    network.model.head = SeesEachKeypointSomewhere()
    hint = PoseAnnotator(network)(patches(WIDTH, HEIGHT))
    assert hint.shape == (HEIGHT, WIDTH, 3)
    for joint, (name, colour) in enumerate(zip(JOINTS, COLOURS, strict=True)):
        if name == "neck":
            continue
        x, y = in_picture(KEYPOINTS.index(name))
        nearby = hint[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].reshape(-1, 3).tolist()
        assert list(colour) in nearby, f"joint {joint}, {name}"


def test_a_person_is_looked_at_inside_its_box(tmp_path: Path) -> None:
    """The same head, with a picture twice as wide whose right half is the person's box."""
    network = pose_network(tmp_path)
    network.model.head = SeesEachKeypointSomewhere()
    halves = [(0.0, 0.0, float(WIDTH), float(HEIGHT)), (float(WIDTH), 0.0, float(WIDTH), float(HEIGHT))]
    alone = PoseAnnotator(network)(patches(WIDTH, HEIGHT))
    both = PoseAnnotator(network, lambda _: halves)(patches(2 * WIDTH, HEIGHT))
    assert (both[:, :WIDTH].any(axis=2) == alone.any(axis=2)).all()
    assert (both[:, WIDTH:].any(axis=2) == alone.any(axis=2)).all()


def test_a_detector_tells_how_many_people_there_are(tmp_path: Path) -> None:
    pose = PartSpec(str(save_tiny_pose(tmp_path / "pose")))
    seen = {
        thing: PoseAnnotator.load(
            PoseSpec(pose, PartSpec(str(save_tiny_detector(tmp_path / thing, seen=thing))), threshold=1e-6), CPU
        )(patches())
        for thing in ("person", "cat")
    }
    assert seen["person"].any()
    assert not seen["cat"].any()


def test_boxes_lie_where_the_detector_says_and_are_not_endless(tmp_path: Path) -> None:
    weights = PartSpec(str(save_tiny_detector(tmp_path, seen="person")))
    boxes = PersonDetector(load_network("it", weights, AutoModelForObjectDetection, CPU))(patches(96, 64))
    assert len(boxes) == MOST_PEOPLE
    for box in boxes:
        assert box == pytest.approx((48, 0, 48, 64), abs=0.1)


def test_vitpose_plus_is_told_which_of_its_experts_to_ask(tmp_path: Path) -> None:
    spec = PoseSpec(PartSpec(str(save_tiny_pose(tmp_path, experts=3))), threshold=1e-6)
    assert PoseAnnotator.load(spec, CPU)(patches()).any()


def test_networks_that_find_something_else_are_refused(tmp_path: Path) -> None:
    hands = PartSpec(str(save_tiny_pose(tmp_path / "hands", keypoints=21)))
    with pytest.raises(ModelLoadError, match="COCO's 17 keypoints"):
        PoseAnnotator.load(PoseSpec(hands), CPU)
    body = PartSpec(str(save_tiny_pose(tmp_path / "body")))
    detector = save_tiny_detector(tmp_path / "detector", seen="cat")
    config = (detector / "config.json").read_text().replace('"person"', '"dog"')
    (detector / "config.json").write_text(config)
    with pytest.raises(ModelLoadError, match="no label `person`"):
        PoseAnnotator.load(PoseSpec(body, PartSpec(str(detector))), CPU)

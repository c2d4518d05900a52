"""The demo family's annotators: trained, resumed, and read back through the door that the server loads them by."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.vitpose.modeling_vitpose import VitPoseEstimatorOutput

from deployments.annotators.catalogue import load_annotator
from deployments.annotators.models import DEMO_ANNOTATORS
from deployments.annotators.spec import AnnotatorSpec, DepthSpec, PoseSpec, SegmentationSpec
from deployments.engine.protocol.spec import PartSpec
from deployments.training import checkpoint
from deployments.training.demo.annotators import ANNOTATORS, COCO, joint_spots, train_annotator
from deployments.training.demo.models import NATIVE
from deployments.training.demo.world.figure import JOINTS
from deployments.training.demo.world.hints import CLASSES, depth_hint, pose_hint, region_colours, segmentation_hint
from deployments.training.demo.world.tableau import draw_tableau, random_depths, random_floor, random_people


def spec_of(kind: str, folder: Path) -> AnnotatorSpec:
    part = PartSpec(str(folder))
    if kind == "depth":
        return DepthSpec(part, near_is_large=False)
    return PoseSpec(part) if kind == "pose" else SegmentationSpec(part)


@pytest.mark.parametrize("kind", ANNOTATORS)
def test_one_is_trained_resumed_and_loaded_by_the_server(kind: str, tmp_path: Path) -> None:
    for _ in range(2):
        train_annotator(kind, tmp_path / "run", tmp_path / kind, iterations=1)
    state = checkpoint.load(tmp_path / "run" / f"{kind}.pt")
    assert state is not None
    assert state["iteration"] == 2
    picture = draw_tableau(random_people(random.Random(1)), 160)
    assert load_annotator(spec_of(kind, tmp_path / kind), "cpu")(picture).shape == (160, 160, 3)


def test_perfect_heat_maps_are_read_as_the_right_joints() -> None:
    _, processor = ANNOTATORS["pose"].make()
    person = random_people(random.Random(2)).person
    assert person is not None
    maps = VitPoseEstimatorOutput(heatmaps=joint_spots(person, 48, 64)[None])
    ((found,),) = processor.post_process_pose_estimation(maps, boxes=[[[0.0, 0.0, float(NATIVE), float(NATIVE)]]])
    read = found["keypoints"].numpy()[[COCO.index(joint) for joint in JOINTS]]
    assert np.abs(read - person.joints * NATIVE).max() < 0.02 * NATIVE


def test_the_shipped_ones_see_the_demo_world() -> None:
    rng = random.Random(3)
    depth, pose, segmentation = (
        load_annotator(DEMO_ANNOTATORS[kind], "cpu") for kind in ("depth", "pose", "segmentation")
    )
    correlations, agreements, covered = [], [], []
    for _ in range(6):
        depths, floor, people = random_depths(rng), random_floor(rng), random_people(rng)
        made = depth(draw_tableau(depths, NATIVE))[..., 0].ravel()
        correlations.append(np.corrcoef(made, depth_hint(depths, NATIVE)[..., 0].ravel())[0, 1])
        regions = segmentation(draw_tableau(floor, NATIVE))
        agreements.append(np.all(regions == segmentation_hint(floor, NATIVE), axis=2).mean())
        assert people.person is not None
        wanted = pose_hint(people.person, NATIVE).any(axis=2)
        near = torch.nn.functional.max_pool2d(
            torch.from_numpy(pose(draw_tableau(people, NATIVE)).any(axis=2))[None, None].float(), 13, 1, 6
        )
        covered.append(near[0, 0].numpy()[wanted].mean())
    assert np.mean(correlations) > 0.85
    assert np.mean(agreements) > 0.9
    assert np.mean(covered) > 0.9


def test_every_region_has_a_colour_of_its_own() -> None:
    assert len(set(region_colours().values())) == len(CLASSES)

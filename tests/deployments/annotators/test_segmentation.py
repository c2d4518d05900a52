"""Segmentation hints: ADE20K's colours and no others."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deployments.annotators.palette import ADE20K
from deployments.annotators.segmentation import SegmentationAnnotator
from deployments.annotators.spec import SegmentationSpec
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.spec import PartSpec
from tests.deployments.annotators.images import patches
from tests.deployments.annotators.tiny import save_tiny_segmenter


def colours(hint: ImageArray) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.unique(hint.reshape(-1, 3), axis=0).tolist()}


def load(folder: Path) -> SegmentationAnnotator:
    return SegmentationAnnotator.load(SegmentationSpec(PartSpec(str(folder))), torch.device("cpu"))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (90, 68), (1000, 900)])
def test_a_hint_has_the_pictures_size_and_nothing_between_two_labels(width: int, height: int, tmp_path: Path) -> None:
    hint = load(save_tiny_segmenter(tmp_path))(patches(width, height))
    assert hint.shape == (height, width, 3)
    assert 1 < len(colours(hint)) <= 150
    assert colours(hint) <= set(ADE20K)


@pytest.mark.parametrize("label", [0, 12, 149])
def test_a_label_is_painted_in_its_own_colour(label: int, tmp_path: Path) -> None:
    assert colours(load(save_tiny_segmenter(tmp_path, only=label))(patches())) == {ADE20K[label]}


def test_a_network_of_other_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="19 labels, ADE20K has 150"):
        load(save_tiny_segmenter(tmp_path, labels=19))

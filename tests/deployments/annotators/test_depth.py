"""Depth hints: near is bright, whichever way a network answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForDepthEstimation, DPTImageProcessorPil, GLPNImageProcessorPil

from deployments.annotators.depth import DepthAnnotator, stretch
from deployments.annotators.networks import WORKING_PIXELS
from deployments.annotators.spec import DepthSpec
from deployments.engine.protocol.errors import NumericalFailure
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.spec import PartSpec
from tests.deployments.annotators.images import patches
from tests.deployments.annotators.tiny import save_tiny_depth, save_tiny_inverse_depth

CPU = torch.device("cpu")


def hint_of(folder: Path, image: ImageArray, *, near_is_large: bool) -> ImageArray:
    return DepthAnnotator.load(DepthSpec(PartSpec(str(folder)), near_is_large), CPU)(image)


def test_the_least_metric_depth_is_the_brightest(tmp_path: Path) -> None:
    folder, image = save_tiny_depth(tmp_path), patches(96, 64)
    grey = hint_of(folder, image, near_is_large=False)[:, :, 0]
    prepared = GLPNImageProcessorPil.from_pretrained(folder)(Image.fromarray(image), return_tensors="pt")
    with torch.inference_mode():
        metres = AutoModelForDepthEstimation.from_pretrained(folder)(**prepared).predicted_depth[0].numpy()
    assert metres.shape == grey.shape
    assert (grey.flat[metres.argmin()], grey.flat[metres.argmax()]) == (255, 0)
    assert np.corrcoef(metres.flat, grey.flat)[0, 1] < -0.999


def test_the_largest_inverse_depth_is_the_brightest(tmp_path: Path) -> None:
    folder, image = save_tiny_inverse_depth(tmp_path), patches(64, 64)
    grey = hint_of(folder, image, near_is_large=True)[:, :, 0]
    prepared = DPTImageProcessorPil.from_pretrained(folder)(Image.fromarray(image), return_tensors="pt")
    with torch.inference_mode():
        inverse = AutoModelForDepthEstimation.from_pretrained(folder)(**prepared).predicted_depth[0].numpy()
    assert grey.flat[inverse.argmax()] == 255
    assert np.corrcoef(inverse.flat, grey.flat)[0, 1] > 0.999


@pytest.mark.parametrize(("width", "height"), [(64, 64), (90, 68), (200, 72), (1000, 900)])
def test_a_hint_is_grey_of_the_pictures_size_and_uses_the_whole_range(width: int, height: int, tmp_path: Path) -> None:
    assert WORKING_PIXELS < 1000 * 900
    hint = hint_of(save_tiny_depth(tmp_path), patches(width, height), near_is_large=False)
    assert hint.shape == (height, width, 3)
    assert hint.dtype == np.uint8
    assert (hint == hint[:, :, :1]).all()
    assert (hint.min(), hint.max()) == (0, 255)


def test_a_large_picture_takes_no_more_memory_than_a_networks_own_size(tmp_path: Path) -> None:
    annotator = DepthAnnotator.load(DepthSpec(PartSpec(str(save_tiny_depth(tmp_path))), near_is_large=False), CPU)
    seen: list[int] = []
    annotator.network.model.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(inputs["pixel_values"][0, 0].numel()), with_kwargs=True
    )
    annotator(patches(1000, 900))
    (pixels,) = seen
    assert pixels <= WORKING_PIXELS


def test_what_is_equally_near_everywhere_has_no_relief() -> None:
    assert not stretch(np.full((4, 4), 2.5, dtype=np.float32)).any()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_an_estimate_that_is_no_number_is_an_error(broken: float) -> None:
    with pytest.raises(NumericalFailure):
        stretch(np.asarray([[1.0, broken]], dtype=np.float32))

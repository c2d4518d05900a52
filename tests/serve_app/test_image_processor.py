"""Hints for Python callers: of the image's size, by the annotators that the processor was given."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployments.annotators import catalogue
from deployments.annotators.catalogue import Annotator, Annotators
from deployments.annotators.models import DEMO_ANNOTATORS
from deployments.annotators.palette import ADE20K
from deployments.annotators.spec import AnnotatorSpec, DepthSpec, PoseSpec, SegmentationSpec
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.spec import ModelSpec, PartSpec
from serve_app import DiffusionService, ImageProcessor
from tests.serve_app.fakes import FakeBackend


def photo() -> Image.Image:
    return Image.effect_mandelbrot((120, 90), (-2, -1, 1, 1), 40).convert("L")


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> ImageProcessor:
    # Imported here: it needs torch, which the rest of this folder does without.
    from tests.deployments.annotators.tiny import save_tiny_depth, save_tiny_pose, save_tiny_segmenter

    folder = tmp_path_factory.mktemp("annotators")
    specs: dict[str, AnnotatorSpec] = {
        "depth": DepthSpec(PartSpec(str(save_tiny_depth(folder / "depth"))), near_is_large=False),
        "pose": PoseSpec(PartSpec(str(save_tiny_pose(folder / "pose"))), threshold=1e-6),
        "segmentation": SegmentationSpec(PartSpec(str(save_tiny_segmenter(folder / "segmentation")))),
    }
    return ImageProcessor(Annotators(specs, "cpu"))


def test_a_hint_is_a_new_picture_of_the_same_size(processor: ImageProcessor) -> None:
    for make in (processor.apply_depth_estimation, processor.apply_pose_estimation, processor.apply_segmentation):
        hint = make(photo())
        assert (hint.mode, hint.size) == ("RGB", photo().size)
        assert hint.getextrema() != ((0, 0),) * 3


def test_each_call_makes_its_own_kind_of_hint(processor: ImageProcessor) -> None:
    depth = np.asarray(processor.apply_depth_estimation(photo()))
    assert (depth == depth[:, :, :1]).all()
    assert (np.asarray(processor.apply_pose_estimation(photo()))[0, 0] == 0).all()
    labels = np.asarray(processor.apply_segmentation(photo())).reshape(-1, 3)
    assert {tuple(colour) for colour in np.unique(labels, axis=0).tolist()} <= set(ADE20K)


def test_without_an_annotator_it_says_so() -> None:
    with pytest.raises(InvalidParameter, match="no annotator"):
        ImageProcessor(Annotators()).apply_depth_estimation(photo())


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[AnnotatorSpec]:
    """What was to be loaded, for which nothing needs to be there."""
    loaded: list[AnnotatorSpec] = []

    def load(spec: AnnotatorSpec, device: str) -> Annotator:
        loaded.append(spec)
        return as_it_is

    monkeypatch.setattr(catalogue, "load_annotator", load)
    return loaded


def as_it_is(picture: ImageArray) -> ImageArray:
    return picture


def test_the_demo_familys_are_the_default(loaded: list[AnnotatorSpec]) -> None:
    for processor in (ImageProcessor(), DiffusionService().image_processor):
        processor.apply_depth_estimation(photo())
        processor.apply_pose_estimation(photo())
        processor.apply_segmentation(photo())
    assert loaded == list(DEMO_ANNOTATORS.values()) * 2


def test_a_service_with_models_of_ones_own_does_not_take_the_demo_familys(tmp_path: Path) -> None:
    """They would answer to photographs, and mean nothing."""
    mine = ModelSpec("mine", str(tmp_path), native_size=64)
    service = DiffusionService(models=[mine])
    with pytest.raises(InvalidParameter, match="no annotator"):
        service.image_processor.apply_depth_estimation(photo())
    asyncio.run(service.close())


def test_a_backend_has_annotators_of_its_own() -> None:
    with pytest.raises(TypeError, match="backend"):
        DiffusionService(FakeBackend(), annotators={})

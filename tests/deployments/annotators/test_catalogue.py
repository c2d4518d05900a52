"""The right annotator makes each hint: loaded late, once, and never in place of another."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from deployments.annotators import catalogue
from deployments.annotators.catalogue import BUILT_IN, Annotator, Annotators
from deployments.annotators.spec import AnnotatorSpec, DepthSpec, PoseSpec, SegmentationSpec
from deployments.engine.protocol.errors import (
    EngineLost,
    GenerationFailed,
    InvalidParameter,
    ModelLoadError,
    Overloaded,
)
from deployments.engine.protocol.spec import PartSpec
from tests.deployments.annotators.images import patches
from tests.deployments.annotators.tiny import save_tiny_depth, save_tiny_pose, save_tiny_segmenter


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, AnnotatorSpec]:
    return {
        "depth": DepthSpec(PartSpec(str(save_tiny_depth(tmp_path / "depth"))), near_is_large=False),
        "pose": PoseSpec(PartSpec(str(save_tiny_pose(tmp_path / "pose")))),
        "segmentation": SegmentationSpec(PartSpec(str(save_tiny_segmenter(tmp_path / "segmentation")))),
    }


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[AnnotatorSpec]:
    """What has been loaded so far."""
    loads: list[AnnotatorSpec] = []
    real = catalogue.load_annotator

    def counted(spec: AnnotatorSpec, device: str) -> Annotator:
        loads.append(spec)
        return real(spec, device)

    monkeypatch.setattr(catalogue, "load_annotator", counted)
    return loads


def test_every_type_has_the_annotator_that_it_was_given(specs: dict[str, AnnotatorSpec]) -> None:
    annotators, image = Annotators(specs, "cpu"), patches()
    for kind, spec in specs.items():
        assert (annotators.of(kind)(image) == catalogue.load_annotator(spec, "cpu")(image)).all()
    for kind, annotate in BUILT_IN.items():
        assert (annotators.of(kind)(image) == annotate(image)).all()


def test_nothing_is_loaded_before_it_is_asked_for_and_then_only_that(
    specs: dict[str, AnnotatorSpec], loads: list[AnnotatorSpec]
) -> None:
    annotators = Annotators(specs, "cpu")
    annotators.of("pose")
    annotators.of("canny")(patches())
    assert loads == []
    annotators.of("depth")(patches())
    assert loads == [specs["depth"]]


def test_an_annotator_is_loaded_once_for_requests_that_come_together(
    specs: dict[str, AnnotatorSpec], loads: list[AnnotatorSpec]
) -> None:
    annotators = Annotators(specs, "cpu")
    with ThreadPoolExecutor(4) as pool:
        hints = list(pool.map(lambda _: annotators.of("depth")(patches()), range(4)))
    assert len(loads) == 1
    assert all((hint == hints[0]).all() for hint in hints)


def test_two_replicas_share_nothing(specs: dict[str, AnnotatorSpec], loads: list[AnnotatorSpec]) -> None:
    for _ in range(2):
        Annotators(specs, "cpu").of("depth")(patches())
    assert len(loads) == 2


def test_a_type_without_an_annotator_is_refused_with_those_there_are(specs: dict[str, AnnotatorSpec]) -> None:
    without = ", ".join(BUILT_IN)
    with pytest.raises(InvalidParameter, match=f"it has: {without}, depth, pose, segmentation") as refused:
        Annotators(specs).of("normal")
    assert refused.value.field == "preprocess"
    with pytest.raises(InvalidParameter, match=f"it has: {without}$"):
        Annotators().of("depth")


def test_a_network_that_was_not_there_is_looked_for_again(tmp_path: Path) -> None:
    annotators = Annotators({"depth": DepthSpec(PartSpec(str(tmp_path / "depth")))}, "cpu")
    with pytest.raises(ModelLoadError, match="annotator 'depth'"):
        annotators.of("depth")(patches())
    save_tiny_depth(tmp_path / "depth")
    assert annotators.of("depth")(patches()).shape == patches().shape


def test_the_same_picture_has_the_same_hint(specs: dict[str, AnnotatorSpec]) -> None:
    for kind in specs:
        once, again = (Annotators(specs, "cpu").of(kind)(patches()) for _ in range(2))
        assert np.array_equal(once, again)


class Fails:
    """In place of a network's annotator."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_: object) -> Annotator:
        raise self.error


@pytest.mark.parametrize("where", ["loading", "running"])
@pytest.mark.parametrize(
    ("error", "told_as", "lost"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), EngineLost, True),
        (torch.OutOfMemoryError("CUDA out of memory."), Overloaded, False),
        (RuntimeError("shapes cannot be multiplied"), GenerationFailed, False),
        (InvalidParameter("image", "is too small"), InvalidParameter, False),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, Exception) else "",
)
def test_what_goes_wrong_on_the_device_is_the_requests_trouble_or_the_processs(
    where: str, error: Exception, told_as: type[Exception], lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = Fails(error)
    monkeypatch.setattr(catalogue, "load_annotator", fails if where == "loading" else lambda *_: fails)
    told: list[str] = []
    annotators = Annotators({"depth": DepthSpec(PartSpec("anywhere"))}, "cpu", lambda: told.append("lost"))
    with pytest.raises(told_as):
        annotators.of("depth")(patches())
    assert told == ["lost"] * lost


def test_a_catalogue_needs_no_torch_until_it_is_used() -> None:
    code = (
        "import sys; from deployments.annotators.catalogue import Annotators;"
        "from deployments.annotators.models import DEMO_ANNOTATORS;"
        "Annotators(DEMO_ANNOTATORS).of('depth');"
        "print(sorted({'torch', 'transformers', 'diffusers'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout.strip() == "[]"

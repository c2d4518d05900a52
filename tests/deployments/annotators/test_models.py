"""The annotators' rows, and the rule that nothing is loaded that was not pinned."""

import dataclasses
from pathlib import Path

import pytest

from deployments.annotators.models import ANNOTATORS, DEMO_ANNOTATORS, check_annotator
from deployments.annotators.spec import AnnotatorSpec, DepthSpec, PoseSpec, network_sources
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import PartSpec

HUB = {name: spec for name, spec in ANNOTATORS.items() if not name.startswith("demo-")}
PINNED = PartSpec("maker/network", "0" * 40)


@pytest.mark.parametrize("spec", ANNOTATORS.values(), ids=list(ANNOTATORS))
def test_every_row_names_its_licences(spec: AnnotatorSpec) -> None:
    assert all(weights.licence for weights in network_sources(spec).values())


@pytest.mark.parametrize("name", HUB)
def test_every_row_is_pinned_or_says_how_to_convert_it(name: str) -> None:
    if name == "upernet-convnext-small":
        with pytest.raises(
            ModelLoadError, match="`darkroom convert openmmlab/upernet-convnext-small FOLDER --revision "
        ):
            check_annotator("segmentation", HUB[name])
        return
    check_annotator("mine", HUB[name])


LOADABLE = {name: spec for name, spec in HUB.items() if name != "upernet-convnext-small"}


@pytest.mark.parametrize("spec", LOADABLE.values(), ids=list(LOADABLE))
def test_a_hub_network_without_a_commit_is_refused_and_the_message_says_what_to_pin(spec: AnnotatorSpec) -> None:
    unpinned = dataclasses.replace(spec, weights=dataclasses.replace(spec.weights, revision=None))
    with pytest.raises(ModelLoadError, match=f"'mine': pin `annotators: mine: revision` .*'{spec.weights.source}'"):
        check_annotator("mine", unpinned)


def test_a_detector_needs_a_commit_of_its_own() -> None:
    with pytest.raises(ModelLoadError, match="`annotators: pose: detector: revision`"):
        check_annotator("pose", PoseSpec(PINNED, detector=PartSpec("maker/detector")))
    check_annotator("pose", PoseSpec(PINNED, detector=PINNED))


def test_a_folder_is_taken_where_it_is_there(tmp_path: Path) -> None:
    check_annotator("depth", DepthSpec(PartSpec(str(tmp_path))))
    with pytest.raises(ModelLoadError, match="no folder"):
        check_annotator("depth", DepthSpec(PartSpec(str(tmp_path / "nowhere"))))


def test_the_demo_family_has_one_for_each_type_of_the_guide() -> None:
    assert list(DEMO_ANNOTATORS) == ["depth", "pose", "segmentation"]


def test_the_documentation_names_every_row_and_its_repository() -> None:
    page = (Path(__file__).parents[3] / "docs" / "annotators.md").read_text()
    for name in ANNOTATORS:
        assert f"`{name}`" in page
    for spec in HUB.values():
        assert all(weights.source in page for weights in network_sources(spec).values())

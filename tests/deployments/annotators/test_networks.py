"""Networks come from folders or pinned repositories, whole, as safetensors, or not at all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation, SegformerModel

from deployments.annotators.networks import WORKING_PIXELS, Network, load_network, shrink_to
from deployments.engine.protocol.errors import InvalidParameter, ModelLoadError
from deployments.engine.protocol.spec import PartSpec
from tests.deployments.annotators.images import patches
from tests.deployments.annotators.tiny import save_tiny_pose, save_tiny_segmenter
from tests.deployments.engine.models.hub_server import COMMIT, REPOSITORY, serve_hub, use_hub


def load(folder: Path, revision: str | None = None) -> Network:
    weights = PartSpec(str(folder), revision)
    return load_network("annotator 'segmentation'", weights, AutoModelForSemanticSegmentation, torch.device("cpu"))


def test_a_folder_loads_in_full_precision_and_learns_no_more(tmp_path: Path) -> None:
    network = load(save_tiny_segmenter(tmp_path)).model
    assert not network.training
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert not any(weight.requires_grad for weight in network.parameters())


def test_a_repository_without_a_commit_is_not_fetched() -> None:
    with pytest.raises(ModelLoadError, match=r"annotator 'segmentation': .*no pinned revision"):
        load(Path("maker/network"))


def test_a_pinned_repository_is_fetched_without_its_pickles_and_then_loads_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_segmenter(tmp_path / "repository")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")

    def fetch(home: str, *, offline: bool) -> None:
        use_hub(monkeypatch, tmp_path / home, hub.url, offline=offline)
        load(Path(REPOSITORY), COMMIT)

    with serve_hub(folder) as hub:
        fetch("home", offline=False)
        assert hub.asked == {"config.json", "preprocessor_config.json", "model.safetensors"}
        fetch("home", offline=True)
        with pytest.raises(ModelLoadError, match=r"^annotator 'segmentation': the hub is out of reach.*HF_HOME"):
            fetch("elsewhere", offline=True)


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_folder_that_is_not_whole_says_what_it_needs(missing: str, tmp_path: Path) -> None:
    (save_tiny_segmenter(tmp_path) / missing).unlink()
    with pytest.raises(ModelLoadError, match=r"config.json, preprocessor_config.json and weights as safetensors"):
        load(tmp_path)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    weights = save_tiny_segmenter(tmp_path) / "model.safetensors"
    torch.save({}, tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelLoadError, match=r"darkroom convert .*safetensors"):
        load(tmp_path)


def test_broken_weights_are_said_to_be(tmp_path: Path) -> None:
    weights = save_tiny_segmenter(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelLoadError):
        load(tmp_path)


def test_a_network_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        load(save_tiny_pose(tmp_path))


def test_weights_that_lack_a_part_are_not_filled_up_with_chance(tmp_path: Path) -> None:
    """A backbone without its head loads, says transformers, and answers noise."""
    whole = load(save_tiny_segmenter(tmp_path / "whole")).model
    SegformerModel(whole.config).save_pretrained(tmp_path / "backbone")
    processor = tmp_path / "whole" / "preprocessor_config.json"
    (tmp_path / "backbone" / processor.name).write_bytes(processor.read_bytes())
    with pytest.raises(ModelLoadError, match="lacks weights"):
        load(tmp_path / "backbone")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state, first: {key: value for key, value in state.items() if key != first}, "lacks weights"),
        (lambda state, first: state | {first: torch.zeros(3, 5)}, "another shape"),
        (lambda state, first: state | {first: state[first] * torch.nan}, "not finite"),
        (lambda state, first: state | {"_orig_mod." + first: state[first].clone()}, "does not know"),
    ],
)
def test_what_is_wrong_with_weights_is_said_with_the_key(change: Any, words: str, tmp_path: Path) -> None:
    weights = save_tiny_segmenter(tmp_path) / "model.safetensors"
    state = load_file(weights)
    first = "decode_head.classifier.weight"
    save_file(change(state, first), weights, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=f"annotator 'segmentation' .*{words}.*{first}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("model.safetensors", b"<html>", "web page"),
        ("preprocessor_config.json", b"{", "preprocessor_config.json is not valid JSON"),
        ("config.json", b"", "config.json is empty"),
    ],
)
def test_a_file_that_is_something_else_is_said_to_be(file: str, content: bytes, words: str, tmp_path: Path) -> None:
    (save_tiny_segmenter(tmp_path) / file).write_bytes(content)
    with pytest.raises(ModelLoadError, match=words):
        load(tmp_path)


def test_a_picture_with_nothing_to_see_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="64 x 64") as refused:
        load(save_tiny_segmenter(tmp_path))(patches(63, 200))
    assert refused.value.field == "image"


def test_only_large_pictures_shrink_and_keep_their_shape() -> None:
    small = patches(500, 400)
    assert shrink_to(small, WORKING_PIXELS) is small
    height, width = shrink_to(patches(3000, 1000), WORKING_PIXELS).shape[:2]
    assert width * height == pytest.approx(WORKING_PIXELS, rel=0.01)
    assert width / height == pytest.approx(3, rel=0.01)

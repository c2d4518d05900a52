"""`darkroom convert`: its output loads unchanged, pickles run nothing, and errors are named."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation
from typer.testing import CliRunner, Result

from deployments.engine.models.components import Components, PartFolder
from deployments.engine.models.part_location import fetch_model
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import ModelSpec
from deployments.weights import conversion, converted_weights
from serve_app.cli.main import app
from tests.deployments.engine.checkpoints.original import original_checkpoint, write
from tests.deployments.engine.tiny import save_tiny_checkpoint, save_tiny_controlnet

CPU = torch.device("cpu")


def convert(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def refused(*arguments: Any) -> str:
    """What it says; there is no folder afterwards, and nothing else beside it."""
    folder = Path(arguments[1])
    before = set(folder.parent.iterdir())
    result = convert(*arguments)
    assert result.exit_code == 1, result.output
    assert set(folder.parent.iterdir()) == before
    return " ".join(result.output.split())


def pickled(
    folder: Path, change: Callable[[dict[str, Any]], Any] = lambda tensors: tensors, half: bool = False
) -> Path:
    """Every network below `folder` as older repositories have it: a pickle instead of safetensors."""
    names = {"model.safetensors": "pytorch_model", "diffusion_pytorch_model.safetensors": "diffusion_pytorch_model"}
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = load_file(path)
        path.unlink()
        torch.save(change(tensors), path.with_name(f"{names[path.name]}{'.fp16' if half else ''}.bin"))
    return folder


def assert_same_networks(one: Path, other: Path) -> None:
    parts = Components(CPU, torch.float32)
    for name, load in (("unet", parts.unet), ("vae", parts.vae), ("text_encoder", parts.text_encoder)):
        mine, theirs = (load(PartFolder(name, name, at / name)).state_dict() for at in (one, other))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def written(source: Path, target: Path, config: str = "") -> None:
    """What the process does, without one."""
    target.mkdir()
    converted_weights.write(source, target, {"darkroom.source": "here"}, config=config, prediction_type="")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def test_a_whole_folder_of_pickles_becomes_one_that_loads_and_says_where_it_is_from(tiny: Path, tmp_path: Path) -> None:
    source = pickled(shutil.copytree(tiny, tmp_path / "old"))
    done = convert(source, tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert_same_networks(tmp_path / "new", tiny)
    fetch_model(ModelSpec("new", str(tmp_path / "new")), torch.float32)
    said = json.loads((tmp_path / "new" / "provenance.json").read_text())
    assert said["source"] == "old"
    assert len(said["sha256"]["unet/diffusion_pytorch_model.bin"]) == 64
    assert {"darkroom", "torch", "safetensors"} <= set(said["versions"])
    with safe_open(tmp_path / "new" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["darkroom.sha256"]) == said["sha256"]
    assert str(tmp_path) not in (tmp_path / "new" / "provenance.json").read_text()
    parts = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == parts | {
        "README.md",
        "model_index.json",
        "provenance.json",
    }
    assert "is there already" in refused(source, tmp_path / "new")


def test_a_controlnet_alone_and_in_half_precision(tmp_path: Path) -> None:
    source = save_tiny_controlnet(tmp_path / "net", seed=11)
    pickled(
        source, lambda tensors: {"state_dict": {name: tensor.half() for name, tensor in tensors.items()}}, half=True
    )
    assert convert(source, tmp_path / "new").exit_code == 0
    assert (tmp_path / "new" / "diffusion_pytorch_model.fp16.safetensors").is_file()


def test_an_annotators_network(tmp_path: Path) -> None:
    backbone = ConvNextConfig(
        hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=4, auxiliary_channels=4, auxiliary_in_channels=4, pool_scales=[1]
    )
    UperNetForSemanticSegmentation(config).save_pretrained(tmp_path / "net")
    written(pickled(tmp_path / "net"), tmp_path / "new")
    _, found = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not found["missing_keys"]


@pytest.mark.parametrize("name", ["mine.ckpt", "mine.safetensors"])
def test_a_file_in_the_original_layout_becomes_a_folder(name: str, tiny: Path, tmp_path: Path) -> None:
    tensors = original_checkpoint(tiny)
    path = tmp_path / name
    if name.endswith("ckpt"):
        torch.save({"state_dict": tensors, "global_step": 470_000}, path)
    else:
        write(path, tensors)
    written(path, tmp_path / "new", config=str(tiny))
    assert_same_networks(tmp_path / "new", tiny)
    assert not list((tmp_path / "new").glob("*.safetensors"))


class Malice:
    """A pickle of it runs a command when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (lambda tensors: dict(list(tensors.items())[1:]), "it lacks "),
    "more": (
        lambda tensors: {**tensors, "more.bias": torch.zeros(1)},
        "it has weights that a ControlNetModel does not know .more.bias.",
    ),
    "misshapen": (
        lambda tensors: {**tensors, "conv_in.bias": torch.zeros(3)},
        "it has weights of another shape than its config.json says .conv_in.bias.",
    ),
    "expanded": (
        lambda tensors: {**tensors, "conv_in.bias": torch.zeros(1).expand(1 << 40)},
        "'conv_in.bias' says that it is larger than its bytes",
    ),
    "no tensors": (lambda _: [1, 2], "holds no tensors by name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_pickle_that_is_wrong_is_refused_by_what_is_wrong(fault: str, tmp_path: Path) -> None:
    change, words = FAULTS[fault]
    source = pickled(save_tiny_controlnet(tmp_path / "net", seed=11), change)
    with pytest.raises(ModelLoadError, match=words):
        written(source, tmp_path / "new")


def test_a_pickle_with_code_runs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    source = pickled(
        save_tiny_controlnet(tmp_path / "net", seed=11), lambda tensors: {**tensors, "extra": Malice(mark)}
    )
    words = "it: 'diffusion_pytorch_model.bin' asks for `posix.system`: weights never need code, so it is not opened"
    assert words in refused(source, tmp_path / "new")
    assert not mark.exists()


def test_what_needs_no_process_is_refused_without_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "_run_process", None)
    assert "needs --revision, a commit of 40 digits" in refused("maker/tiny", tmp_path / "new")
    assert "needs --revision, a commit of 40 digits" in refused("maker/tiny", tmp_path / "new", "--revision", "main")
    assert "there is no" in refused(tmp_path / "nowhere", tmp_path / "new")
    assert "has no weights" in refused(tiny / "tokenizer", tmp_path / "new")
    (tmp_path / "notes.md").write_text("")
    assert "no checkpoint by its name" in refused(tmp_path / "notes.md", tmp_path / "new")
    assert convert(tiny, tmp_path / "new", "--prediction-type", "v").exit_code == 2


def test_memory_and_time_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pickled(save_tiny_controlnet(tmp_path / "net", seed=11))
    monkeypatch.setattr(conversion, "_BASE_SECONDS", 0)
    assert "it took longer than 0 s, and was ended" in refused(source, tmp_path / "new")
    monkeypatch.setattr(conversion, "_BASE_SECONDS", 600)
    monkeypatch.setattr(conversion, "_BASE_MEMORY", 1 << 26)
    assert "it may use" in refused(source, tmp_path / "new")


def test_of_a_repository_only_one_kind_of_weights_is_wanted() -> None:
    folder = "unet/diffusion_pytorch_model"
    files = [
        "model_index.json",
        "v1-5.ckpt",
        "unet/config.json",
        f"{folder}.bin",
        f"{folder}.fp16.bin",
        "safety_checker/pytorch_model.bin",
    ]
    assert list(conversion._select_files(files)) == ["model_index.json", "unet/config.json", f"{folder}.bin"]
    assert f"{folder}.bin" not in conversion._select_files([f"{folder}.safetensors", *files])
    assert list(conversion._select_files(["config.json", "pytorch_model.bin"])) == ["config.json", "pytorch_model.bin"]


def test_a_process_that_answers_nothing_has_not_converted() -> None:
    assert conversion._parse_answer("") == conversion._parse_answer("[1]") == {}
    assert conversion._parse_answer('{"refused": "x"}') == {"refused": "x"}

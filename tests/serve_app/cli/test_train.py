"""`darkroom train` and `darkroom loras`: pictures become a LoRA that is served, with versions; errors have codes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from deployments.engine.protocol.settings import LoraSettings
from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.catalogue import LoraCatalogue
from deployments.training.lora.run_folder import RunFolder
from serve_app.cli.main import app
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.deployments.training.lora.pictures import write_pictures

SETTINGS: dict[str, Any] = {
    "rank": 2,
    "batch_size": 2,
    "prior_pictures": 0,
    "evaluation_prompts": ["a {trigger}"],
    "unrelated_prompts": ["a cat"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration of one tiny model, pictures, and settings."""
    folder = tmp_path_factory.mktemp("train")
    model = {"name": "tiny", "source": str(save_tiny_checkpoint(folder / "model"))}
    config = {"models": [model], "deployments": [{"name": "tiny", "models": ["tiny"]}]}
    (folder / "served.yaml").write_text(yaml.safe_dump(config | {"loras": {"folder": str(folder / "loras")}}))
    (folder / "bare.yaml").write_text(yaml.safe_dump(config))
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    write_pictures(folder / "pictures", 3)
    return folder


def darkroom(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(place: Path, *more: object, run: str = "run", config: str = "served") -> Result:
    named = ("--name", "cup", "--trigger", "cup", "--settings", place / "settings.yaml", "--device", "cpu")
    files = ("--config", place / f"{config}.yaml", "--run", place / run)
    return darkroom("train", place / "pictures", *named, *files, *more)


def loras(place: Path, *arguments: object) -> Result:
    return darkroom("loras", *arguments, "--config", place / "served.yaml")


def test_pictures_become_versions_that_are_served(place: Path) -> None:
    first = train(place, "--steps", 2, "--register", "--json")
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert told["version"] == 1
    assert told["evaluation"]["drift"] is not None
    second = train(place, "--steps", 3, run="second")
    assert second.exit_code == 0, second.output
    assert loras(place, "register", place / "second").stdout == "cup is version 2\n"
    assert loras(place, "list").stdout == "cup  1\ncup  2  *\n"
    assert "its trigger is `cup`" in loras(place, "card", "cup", 2).stdout.lower()
    catalogue, tiny = LoraCatalogue(folder=place / "loras"), ModelSpec("tiny", str(place / "model"))
    assert catalogue.resolve([LoraSettings(name="cup")], tiny)
    assert json.loads(loras(place, "rollback", "cup", "--json").stdout) == {"name": "cup", "version": 1}
    assert loras(place, "rollback", "cup", "--to", 2).exit_code == 0
    assert loras(place, "delete", "cup").exit_code == 0
    assert catalogue.entries() == []


@pytest.mark.slow
def test_two_processes_train_together_and_what_they_cannot_do_is_one_line(place: Path) -> None:
    trained = train(place, "--steps", 2, "--processes", 2, "--json", run="together")
    assert trained.exit_code == 0, trained.output
    assert Path(json.loads(trained.stdout)["lora"]).is_file()
    assert len(RunFolder(place / "together").read_losses()) == 2
    refused = train(place, "--steps", 9, "--processes", 2, run="together")
    assert refused.exit_code == 2
    assert "steps: differs from the training in this folder" in refused.stderr.replace("\n", " ")
    (place / "model" / "vae" / "diffusion_pytorch_model.safetensors").rename(place / "hidden")
    try:
        failed = train(place, "--steps", 2, "--processes", 2, run="failing")
    finally:
        (place / "hidden").rename(place / "model" / "vae" / "diffusion_pytorch_model.safetensors")
    assert failed.exit_code == 1
    assert "vae" in failed.stderr
    assert RunFolder(place / "failing").read_progress().state == "failed"


def test_a_training_that_is_over_is_not_done_again(place: Path) -> None:
    assert train(place, "--steps", 2, run="again").exit_code == 0
    before = RunFolder(place / "again").read_losses()
    assert train(place, "--steps", 2, run="again").exit_code == 0
    assert RunFolder(place / "again").read_losses() == before


@pytest.mark.parametrize(
    ("more", "config", "exit_code", "words"),
    [
        (("--steps", 99_999), "served", 2, "steps: must be at most 20000"),
        (("--template", "a photo"), "served", 2, "template: must have {trigger}"),
        (("--model", "tinny"), "served", 5, "did you mean"),
        (("--register",), "bare", 2, "names no `loras.folder`"),
        (("--rank", 0), "served", 2, "rank"),
        (("--device", "gpu"), "served", 2, "device: must be one of auto, cpu, cuda"),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(
    more: tuple[object, ...], config: str, exit_code: int, words: str, place: Path
) -> None:
    refused = train(place, *more, run="refused", config=config)
    assert refused.exit_code == exit_code, refused.output
    assert words in refused.stderr.replace("\n", " ")


def test_only_what_was_judged_is_registered(place: Path, tmp_path: Path) -> None:
    refused = loras(place, "register", tmp_path)
    assert refused.exit_code == 2
    assert "only what was judged can be served" in refused.stderr

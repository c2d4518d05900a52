"""`darkroom fetch`, with the hub's real client and a hub of our own on loopback: afterwards no network is needed."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError
from typer.testing import CliRunner, Result

from deployments.weights import hub_check
from serve_app.cli.main import app
from tests.deployments.engine.models.hub_server import (
    COMMIT,
    REPOSITORY,
    client_environment,
    save_repository,
    serve_hub,
)
from tests.deployments.loras.files import write_lora

TINY: dict[str, Any] = {"name": "tiny", "source": REPOSITORY, "revision": COMMIT, "native_size": 64}


def config_of(model: dict[str, Any], **deployment: Any) -> dict[str, Any]:
    return {"models": [model], "deployments": [{"name": "tiny", "models": ["tiny"], **deployment}]}


def fetched(folder: Path, config: dict[str, Any], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / "darkroom.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "serve_app.cli", "fetch", "--config", str(folder / "darkroom.yaml")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("deployment", "variant"), [({"device": "cuda", "num_gpus": 1}, ".fp16"), ({"dtype": "float16"}, ".fp16")]
)
def test_what_was_fetched_is_what_the_deployment_loads(
    deployment: dict[str, Any], variant: str, tmp_path: Path
) -> None:
    with serve_hub(save_repository(tmp_path / "repository")) as hub:
        done = fetched(tmp_path, config_of(TINY, **deployment), client_environment(tmp_path / "home", hub.url))
        assert done.returncode == 0, done.stderr
        weights = {name for name in hub.asked if name.endswith((".safetensors", ".bin"))}
    assert f"unet/diffusion_pytorch_model{variant}.safetensors" in weights
    assert len(weights) == 3


def test_what_was_fetched_needs_no_hub(tmp_path: Path) -> None:
    with serve_hub(save_repository(tmp_path / "repository")) as hub:
        environment = client_environment(tmp_path / "home", hub.url)
        done = fetched(tmp_path, config_of(TINY), environment)
        assert (done.returncode, done.stdout) == (0, "model 'tiny' is here\n"), done.stderr
        assert "unet/diffusion_pytorch_model.safetensors" in hub.asked
    again = fetched(tmp_path, config_of(TINY), environment | {"HF_HUB_OFFLINE": "1"})
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr


@pytest.mark.parametrize(
    ("changes", "exit_code", "words"),
    [({"revision": "f" * 40}, 1, "has no revision"), ({"revision": None}, 2, "pin `revision`")],
)
def test_what_cannot_be_had_is_said_in_one_line(
    changes: dict[str, Any], exit_code: int, words: str, tmp_path: Path
) -> None:
    with serve_hub(save_repository(tmp_path / "repository")) as hub:
        done = fetched(tmp_path, config_of(TINY | changes), client_environment(tmp_path / "home", hub.url))
    assert (done.returncode, len(done.stderr.splitlines())) == (exit_code, 1), done.stderr
    assert words in done.stderr
    assert "'tiny'" in done.stderr
    assert "`revision`" in done.stderr


def checked(folder: Path, config: dict[str, Any]) -> Result:
    (folder / "darkroom.yaml").write_text(yaml.safe_dump(config))
    return CliRunner().invoke(app, ["fetch", "--check", "--config", str(folder / "darkroom.yaml")])


def test_a_check_asks_for_every_row_and_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can be fetched, and each way in which one cannot."""
    repository = save_repository(tmp_path / "repository")
    parts = {
        "text_encoder": {"source": str(repository / "text_encoder")},
        "vae": {"source": REPOSITORY, "revision": "e" * 40},
        "tokenizer": {"source": "maker/other", "revision": COMMIT},
    }
    models = [TINY, {**TINY, "name": "mixed", "parts": parts}]
    config = {"models": models, "deployments": [{"name": "all", "models": ["tiny", "mixed"]}]}
    with serve_hub(repository) as hub:
        monkeypatch.setattr(hub_check, "HfApi", partial(HfApi, endpoint=hub.url))
        good = checked(tmp_path, config_of(TINY))
        bad = checked(tmp_path, config)
        for path in (repository / "unet").glob("*.safetensors"):
            path.unlink()
        pickled = checked(tmp_path, config_of(TINY))
        assert hub.asked == set()
    assert good.exit_code == 0, good.output
    assert good.stdout.startswith(f"ok    model 'tiny': {REPOSITORY}: {COMMIT} is there; 3 files of weights, 0.00 GB")
    assert (bad.exit_code, bad.stderr) == (1, "darkroom: 2 of 5 rows cannot be loaded\n")
    assert [line[:5] for line in bad.stdout.splitlines()] == ["ok   ", "ok   ", "ok   ", "WRONG", "WRONG"]
    said = [line.partition("'mixed': ")[2] for line in bad.stdout.splitlines()]
    assert any(line.startswith(f"its vae: {REPOSITORY}: the hub has no commit '{'e' * 40}'") for line in said)
    assert any(line.startswith("its tokenizer: maker/other: the hub shows no such repository") for line in said)
    assert pickled.exit_code == 1
    assert "its unet has its weights as a pickle only" in pickled.stdout
    assert f"`darkroom convert {REPOSITORY} FOLDER --revision {COMMIT}`" in pickled.stdout


def test_loras_are_fetched_and_checked_as_models_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = save_repository(tmp_path / "repository")
    write_lora(repository / "lora.safetensors")
    row = {"name": "coffee", "source": REPOSITORY, "revision": COMMIT, "file": "lora.safetensors"}
    with serve_hub(repository) as hub:
        environment = client_environment(tmp_path / "home", hub.url)
        done = fetched(tmp_path, config_of(TINY) | {"loras": {"named": [row]}}, environment)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "LoRA 'coffee' is here"), done.stderr
        assert "lora.safetensors" in hub.asked
        monkeypatch.setattr(hub_check, "HfApi", partial(HfApi, endpoint=hub.url))
        lost = [row, row | {"name": "lost", "file": "lost.safetensors"}]
        answer = checked(tmp_path, config_of(TINY) | {"loras": {"named": lost}})
    assert (answer.exit_code, answer.stderr) == (1, "darkroom: 1 of 3 rows cannot be loaded\n")
    assert f"ok    LoRA 'coffee': {REPOSITORY}: {COMMIT} is there; lora.safetensors, " in answer.stdout
    assert "WRONG LoRA 'lost'" in answer.stdout
    again = fetched(tmp_path, config_of(TINY) | {"loras": {"named": [row]}}, environment | {"HF_HUB_OFFLINE": "1"})
    assert again.returncode == 0, again.stderr


def test_a_loras_file_that_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    row = {"name": "coffee", "source": str(tmp_path / "lost.safetensors")}
    (tmp_path / "darkroom.yaml").write_text(yaml.safe_dump(config_of(TINY) | {"loras": {"named": [row]}}))
    answer = CliRunner().invoke(app, ["fetch", "--config", str(tmp_path / "darkroom.yaml")])
    assert answer.exit_code == 2
    assert "'coffee': its file is not there" in answer.output


def test_a_check_reports_what_lies_on_another_machines_volume_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's machine asks the hub for a cluster, whose volume it does not have."""
    mine = {"name": "mine", "source": "/volume/mine", "native_size": 64}
    mixed = {**TINY, "name": "mixed", "parts": {"vae": {"source": "/volume/vae"}}}
    loose = {**TINY, "name": "loose", "parts": {"vae": {"source": "/volume/vae"}, "tokenizer": {"source": "a/b"}}}
    config = {
        "models": [mine, mixed, TINY],
        "deployments": [{"name": "all", "models": ["mine", "mixed", "tiny"]}],
        "annotators": {"segmentation": {"source": "/volume/segmenter"}},
        "upscalers": [{"name": "large", "source": "/volume/large.safetensors"}],
        "loras": {"named": [{"name": "coffee", "source": "/volume/coffee.safetensors"}]},
    }
    with serve_hub(save_repository(tmp_path / "repository")) as hub:
        monkeypatch.setattr(hub_check, "HfApi", partial(HfApi, endpoint=hub.url))
        answer = checked(tmp_path, config)
        pinned = checked(tmp_path, config_of(TINY))
        unpinned = checked(tmp_path, config_of(loose | {"name": "tiny"}))
    assert answer.exit_code == pinned.exit_code == 0, answer.output
    marks = [(line[:5].strip(), line[6:].partition(": ")[0]) for line in answer.stdout.splitlines()]
    assert marks == [
        ("?", "model 'mine'"),
        ("ok", "model 'mixed'"),
        ("?", "model 'mixed'"),
        ("ok", "model 'tiny'"),
        ("?", "annotator 'segmentation'"),
        ("?", "upscaler 'large'"),
        ("?", "LoRA 'coffee'"),
    ]
    assert "/volume/mine: not on this machine" in answer.stdout
    assert unpinned.exit_code == 1
    assert "WRONG model 'tiny': its tokenizer: a/b: pin `revision`" in unpinned.stdout


def test_a_hub_that_does_not_answer_and_a_gated_repository_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(answer: Callable[..., Any]) -> str:
        hub = SimpleNamespace(model_info=answer, auth_check=refuse)
        monkeypatch.setattr(hub_check, "HfApi", lambda: hub)
        done = checked(tmp_path, config_of(TINY))
        assert done.exit_code == 1
        return done.stdout

    def refuse(*_: Any, **__: Any) -> Any:
        response: Any = httpx.Response(403, request=httpx.Request("GET", "http://hub"))
        raise GatedRepoError("no", response=response)

    def absent(*_: Any, **__: Any) -> Any:
        raise OSError("no route")

    assert told(absent) == f"WRONG model 'tiny': {REPOSITORY}: the hub is out of reach\n"
    gated = f"WRONG model 'tiny': {REPOSITORY}: it is gated: accept its terms on the hub, and set HF_TOKEN\n"
    assert told(refuse) == gated
    assert told(lambda *_, **__: SimpleNamespace(gated="auto", siblings=())) == gated

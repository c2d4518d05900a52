"""Fetching from a hub of our own on loopback, with the real client: what comes, what does not, and what is said."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployments.engine.hub_server import COMMIT, REPOSITORY, client_environment, save_repository, serving

LOAD = """
import sys, torch
from deployments.engine.errors import ModelLoadError
from deployments.engine.models import load_model
from deployments.engine.spec import ModelSpec

spec = ModelSpec("tiny", sys.argv[1], revision=sys.argv[2], native_size=64)
try:
    model = load_model(spec, torch.device("cpu"), getattr(torch, sys.argv[3]))
    print("loaded", model.bytes, model.spec.source)
except ModelLoadError as error:
    print("refused", error.message)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_repository(tmp_path_factory.mktemp("repository"))


def load(
    home: Path,
    url: str,
    *,
    offline: bool = False,
    source: str = REPOSITORY,
    revision: str = COMMIT,
    dtype: str = "float32",
) -> str:
    command = [sys.executable, "-W", "ignore", "-c", LOAD, source, revision, dtype]
    environment = client_environment(home, url, offline=offline)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("dtype", "variant"), [("float32", ""), ("bfloat16", ".fp16")])
def test_only_what_is_needed_is_fetched_and_then_it_loads_offline(
    dtype: str, variant: str, repository: Path, tmp_path: Path
) -> None:
    with serving(repository) as hub:
        assert load(tmp_path, hub.url, dtype=dtype).startswith("loaded ")
        weights = {name for name in hub.asked if name.endswith((".safetensors", ".bin"))}
        url = hub.url
    assert weights == {
        f"unet/diffusion_pytorch_model{variant}.safetensors",
        f"vae/diffusion_pytorch_model{variant}.safetensors",
        f"text_encoder/model{variant}.safetensors",
    }
    assert load(tmp_path, url, dtype=dtype).endswith(REPOSITORY)


def test_a_hub_out_of_reach_is_said_with_what_to_do(tmp_path: Path) -> None:
    # Told by its setting: the client tries a hub that only fails to answer for half a minute.
    said = load(tmp_path, "http://127.0.0.1:9", offline=True)
    assert said.startswith("refused model 'tiny': the hub is out of reach")
    assert "HF_HOME" in said


@pytest.mark.parametrize(
    ("source", "revision", "words"),
    [("maker/other", COMMIT, "no repository 'maker/other'"), (REPOSITORY, "f" * 40, "has no revision")],
)
def test_what_the_hub_does_not_have_is_said(
    source: str, revision: str, words: str, repository: Path, tmp_path: Path
) -> None:
    with serving(repository) as hub:
        assert words in load(tmp_path, hub.url, source=source, revision=revision)

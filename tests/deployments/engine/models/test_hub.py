"""Fetching from a hub of our own on loopback, with the real client: what is fetched, what is not, and the errors."""

import shutil
from pathlib import Path
from typing import Final

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import constants

from deployments.engine.models.hub import locate, select_files
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import PARTS, ModelSpec
from tests.deployments.engine.changes import halves
from tests.deployments.engine.models.hub_server import (
    COMMIT,
    REPOSITORY,
    save_repository,
    serve_hub,
    use_hub,
)
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.deployments.engine.tiny_xl import save_tiny_xl


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_repository(tmp_path_factory.mktemp("repository"))


class Loader:
    """Loads from a hub into a cache of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        self._monkeypatch = monkeypatch
        self._home = home

    def __call__(
        self,
        url: str,
        *,
        offline: bool = False,
        source: str = REPOSITORY,
        revision: str = COMMIT,
        dtype: torch.dtype = torch.float32,
    ) -> LoadedModel:
        use_hub(self._monkeypatch, self._home, url, offline=offline)
        return load_model(ModelSpec("tiny", source, revision=revision, native_size=64), torch.device("cpu"), dtype)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Loader:
    return Loader(monkeypatch, tmp_path / "home")


@pytest.mark.parametrize(("dtype", "variant"), [(torch.float32, ""), (torch.bfloat16, ".fp16")])
def test_only_what_is_needed_is_fetched_and_then_it_loads_offline(
    dtype: torch.dtype, variant: str, repository: Path, load: Loader
) -> None:
    with serve_hub(repository) as hub:
        load(hub.url, dtype=dtype)
        weights = {name for name in hub.asked if name.endswith((".safetensors", ".bin"))}
        url = hub.url
    assert weights == {
        f"unet/diffusion_pytorch_model{variant}.safetensors",
        f"vae/diffusion_pytorch_model{variant}.safetensors",
        f"text_encoder/model{variant}.safetensors",
    }
    # Nobody answers there any more.
    assert load(url, dtype=dtype).spec.source == REPOSITORY


def test_a_hub_out_of_reach_is_said_with_what_to_do(load: Loader) -> None:
    # Told by its setting: the client tries a hub that only fails to answer for half a minute.
    with pytest.raises(ModelLoadError, match=r"^model 'tiny': the hub is out of reach.*HF_HOME"):
        load("http://127.0.0.1:9", offline=True)


@pytest.mark.parametrize(
    ("source", "revision", "words"),
    [("maker/other", COMMIT, "no repository 'maker/other'"), (REPOSITORY, "f" * 40, "has no revision")],
)
def test_what_the_hub_does_not_have_is_said(
    source: str, revision: str, words: str, repository: Path, load: Loader
) -> None:
    with serve_hub(repository) as hub, pytest.raises(ModelLoadError, match=words):
        load(hub.url, source=source, revision=revision)


def half_only(folder: Path) -> None:
    """As SD1.5's inpainting: some parts in half precision only, one in shards, and variants of other weights."""
    for path in [*folder.rglob("*.bin"), *folder.rglob("*.non_ema.safetensors")]:
        path.unlink()
    for part in ("unet", "vae"):
        plain = folder / part / "diffusion_pytorch_model.safetensors"
        plain.with_suffix(".ema.safetensors").write_bytes(b"not these")
        plain.unlink()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", variant="fp16", torch_dtype=torch.float16)
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="100KB")


def test_half_precision_is_fetched_where_there_is_nothing_else_and_then_it_loads_offline(
    tmp_path: Path, load: Loader
) -> None:
    folder = save_repository(tmp_path / "repository")
    half_only(folder)
    shards = {path.relative_to(folder).as_posix() for path in (folder / "unet").glob("*-of-*.safetensors")}
    with serve_hub(folder) as hub:
        load(hub.url)
        weights = {name for name in hub.asked if name.endswith(".safetensors")}
        url = hub.url
    assert len(shards) > 1
    assert weights == shards | {"vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors"}
    load(url, offline=True)


NAMES: Final = (
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.ema.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.bf16.safetensors",
    "vae/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "vae/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
    "vae/diffusion_pytorch_model.safetensors.index.fp16.json",
    "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
    "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
    "vae/diffusion_pytorch_model.safetensors.index.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "v1-5-pruned.safetensors",
)


@pytest.mark.parametrize(("half", "mark"), [(False, "model-0000"), (True, "fp16-0000")])
def test_of_a_repository_the_shards_of_one_precision_are_wanted(half: bool, mark: str) -> None:
    wanted = set(select_files("it", "maker/it", COMMIT, NAMES, ("vae", "tokenizer"), half=half))
    index = "vae/diffusion_pytorch_model.safetensors.index" + (".fp16" if half else "") + ".json"
    shards = {name for name in NAMES if mark in name}
    assert wanted == {
        "model_index.json",
        "vae/config.json",
        index,
        *shards,
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
    }


def test_a_repository_of_pickles_says_what_to_run_before_anything_is_fetched() -> None:
    command = f"darkroom convert maker/it FOLDER --revision {COMMIT}"
    with pytest.raises(ModelLoadError, match=rf"it: its unet .*run `{command}` and set `source`"):
        list(select_files("it", "maker/it", COMMIT, NAMES[:2], ("unet",), half=False))
    with pytest.raises(ModelLoadError, match=r"diffusion_pytorch_model\.ema\.safetensors"):
        list(select_files("it", "maker/it", COMMIT, (NAMES[0], NAMES[2]), ("unet",), half=False))


def test_a_cache_that_another_program_filled_serves_without_a_hub_as_far_as_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a cache has no list of the repository's files: what it lacks may be on the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = save_tiny_checkpoint(tmp_path / "models--maker--tiny" / "snapshots" / COMMIT)

    def found(*, half: bool) -> Path:
        return locate("it", REPOSITORY, COMMIT, PARTS, half=half)

    assert found(half=False) == found(half=True) == snapshot
    halves(snapshot)
    assert found(half=True) == snapshot
    with pytest.raises(ModelLoadError, match="hub is out of reach"):
        found(half=False)
    (snapshot / "model_index.json").unlink()
    with pytest.raises(ModelLoadError, match="hub is out of reach"):
        found(half=True)


def test_a_cached_model_of_two_text_encoders_is_whole_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = save_tiny_xl(tmp_path / "models--maker--tiny" / "snapshots" / COMMIT)
    assert locate("it", REPOSITORY, COMMIT, PARTS, half=False) == snapshot
    shutil.rmtree(snapshot / "text_encoder_2")
    with pytest.raises(ModelLoadError, match="hub is out of reach"):
        locate("it", REPOSITORY, COMMIT, PARTS, half=False)

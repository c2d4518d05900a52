"""A model is known by its files: whichever of them is replaced under its name, it is another one."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.engine.protocol.safety import CheckerSpec, SafetySpec
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec
from deployments.weights import local_files
from deployments.weights.local_files import digest_sources, local_digest_of, with_local_digest

FILES = (
    "model/model_index.json",
    "model/unet/config.json",
    "model/unet/diffusion_pytorch_model.safetensors",
    "model/tokenizer/merges.txt",
    "vae.safetensors",
    "canny/diffusion_pytorch_model.safetensors",
    "style/ip_adapter.safetensors",
    "style/models/image_encoder/model.safetensors",
    "checker/safety_checker/model.safetensors",
    "config/unet/config.json",
)


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"before")
    checkers = (CheckerSpec("nsfw", str(tmp_path / "checker")),)
    return ModelSpec(
        "any",
        str(tmp_path / "model"),
        native_size=64,
        config=str(tmp_path / "config"),
        parts={"vae": str(tmp_path / "vae.safetensors")},
        controlnets={"canny": str(tmp_path / "canny")},
        ip_adapters={
            "style": IpAdapterSpec(
                str(tmp_path / "style/ip_adapter.safetensors"),
                str(tmp_path / "style"),
                subfolder="models/image_encoder",
            )
        },
        safety=SafetySpec("report", checkers),
    )


@pytest.mark.parametrize("name", FILES)
def test_any_file_that_is_replaced_in_place_counts(name: str, spec: ModelSpec, tmp_path: Path) -> None:
    before = local_digest_of(spec)
    (tmp_path / name).write_bytes(b"behind")
    assert local_digest_of(spec) not in (before, "")
    (tmp_path / name).write_bytes(b"before")
    assert local_digest_of(spec) == before


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def lengthen(path: Path) -> None:
    found = path.stat()
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("change", [touch, lengthen])
def test_a_large_file_is_known_by_its_size_and_time_and_a_small_one_by_its_bytes(
    change: Callable[[Path], None], spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FILES[2]
    small = local_digest_of(spec)
    touch(path)
    assert local_digest_of(spec) == small
    monkeypatch.setattr(local_files, "READ_WHOLE", 5)
    large = local_digest_of(spec)
    change(path)
    assert local_digest_of(spec) != large


def test_what_is_on_the_hub_has_no_digest_and_one_that_is_given_is_kept(spec: ModelSpec) -> None:
    assert local_digest_of(ModelSpec("far", "maker/far", "a" * 40, parts={"vae": "maker/vae"})) == ""
    assert digest_sources([]) == ""
    seen = with_local_digest(spec)
    assert seen.local_digest == local_digest_of(spec)
    elsewhere = replace(seen, local_digest="seen by another process")
    assert with_local_digest(elsewhere) == elsewhere


def test_other_files_in_a_folder_do_not_count(spec: ModelSpec, tmp_path: Path) -> None:
    before = local_digest_of(spec)
    (tmp_path / "model" / "preview.png").write_bytes(b"x")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    assert local_digest_of(spec) == before

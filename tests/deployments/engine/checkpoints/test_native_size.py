"""Without a size an image is as large as diffusers' pipeline makes it from the same configs."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from diffusers.configuration_utils import FrozenDict

from deployments.engine.checkpoints.native_size import with_native_size
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.params import GenerationParams, effective_params
from deployments.engine.protocol.spec import ModelSpec


def folder_with(tmp_path: Path, source: Path, **changes: Any) -> Path:
    """`source`'s configs, that of the UNet changed; None takes an entry out."""
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        shutil.copy(source / part / "config.json", tmp_path / part)
    path = tmp_path / "unet" / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return tmp_path


def size_of_diffusers(folder: Path) -> tuple[int, int]:
    """Height and width that `StableDiffusionPipeline` takes for a call without a size."""
    unet = SimpleNamespace(config=FrozenDict(json.loads((folder / "unet" / "config.json").read_text())))
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor"))
    pipeline = StableDiffusionPipeline.__new__(StableDiffusionPipeline)
    pipeline.register_modules = lambda **_: None
    pipeline.__init__(unet=unet, **parts, requires_safety_checker=False)
    size = unet_size = getattr(unet, "_internal_dict", unet.config)["sample_size"]
    height, width = (size, unet_size) if pipeline._is_unet_config_sample_size_int else size
    return height * 8, width * 8


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_size": 8},
        {"sample_size": 32, "_diffusers_version": "0.6.0"},
        {"sample_size": 32, "_diffusers_version": "0.8.1"},
        {"sample_size": 32, "_diffusers_version": "0.9.0.dev0"},
        {"sample_size": 32, "_diffusers_version": "0.10.2"},
        {"sample_size": 32, "_diffusers_version": ...},
        {"sample_size": 96, "_diffusers_version": "0.6.0"},
        {"sample_size": [24, 40], "_diffusers_version": "0.6.0"},
        {"sample_size": [40, 40]},
    ],
)
def test_the_native_size_is_that_of_diffusers(changes: dict[str, Any], tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = folder_with(tmp_path, tiny_checkpoint, **changes)
    spec = with_native_size(ModelSpec("m", str(folder)))
    params = effective_params(GenerationParams(prompt="x"), spec)
    assert (params.height, params.width) == spec.native == size_of_diffusers(folder)


@pytest.mark.parametrize("size", [None, ..., [], [64], ["64", 64], 0, -8, 64.5, True, "64"])
def test_a_size_that_the_config_does_not_tell_is_asked_of_the_operator(
    size: Any, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    folder = folder_with(tmp_path, tiny_checkpoint, sample_size=size)
    with pytest.raises(
        ModelLoadError, match=r"model 'm': `sample_size` in its unet/config\.json .* give `native_size`"
    ):
        with_native_size(ModelSpec("m", str(folder)))
    assert with_native_size(ModelSpec("m", str(folder), native_size=96)).native == (96, 96)

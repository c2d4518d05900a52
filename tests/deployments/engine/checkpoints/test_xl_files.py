"""Stable Diffusion XL's folders and files are loaded whole, or refused by what is missing or does not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from bench.engine.pipelines import arguments
from deployments.engine.checkpoints.native_size import with_native_size
from deployments.engine.checkpoints.original_configs import Family
from deployments.engine.checkpoints.original_layout import describe_file
from deployments.engine.models.loaded_model import load_model
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import ModelSpec
from deployments.source_checks import check_source
from tests.deployments.engine.checkpoints.original import original_xl_checkpoint, write
from tests.deployments.engine.checkpoints.test_single_file import XL_SHAPES, header_only, shapes
from tests.deployments.engine.harness import difference, request_for, run
from tests.deployments.engine.tiny_xl import save_tiny_xl

CPU = torch.device("cpu")
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_xl(tmp_path_factory.mktemp("xl"))


def without(name: str) -> Change:
    return lambda root: rmtree(root / name)


def changed(file: str, **entries: Any) -> Change:
    def change(root: Path) -> None:
        path = root / file
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("text_encoder_2"), "text_time.*there is no text_encoder_2/"),
        (without("tokenizer_2"), "text_time.*there is no tokenizer_2/"),
        (changed("model_index.json", text_encoder_2=[None, None]), "names a StableDiffusionXLPipeline and no class"),
        (changed("model_index.json", requires_aesthetics_score=True), "is a refiner"),
        (changed("model_index.json", _class_name="StableDiffusionXLInstructPix2PixPipeline"), "InstructPix2Pix"),
        (
            changed("text_encoder_2/config.json", architectures=["CLIPTextModel"]),
            "its text_encoder_2 is a CLIPTextModel",
        ),
        (changed("vae/config.json", latents_mean=[0.0] * 4, latents_std=[1.0] * 4), "`latents_mean`"),
        (changed("tokenizer_2/tokenizer_config.json", model_max_length=70), "`model_max_length`"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(change: Change, words: str, folder: Path, tmp_path: Path) -> None:
    root = copytree(folder, tmp_path / "xl")
    change(root)
    with pytest.raises(ModelLoadError, match=words):
        load_model(ModelSpec("xl", str(root)), CPU, torch.float32)


def test_a_part_from_elsewhere_takes_its_place(folder: Path, tmp_path: Path) -> None:
    root = copytree(folder, tmp_path / "xl")
    for name in ("text_encoder_2", "tokenizer_2"):
        rmtree(root / name)
    parts = {name: str(folder / name) for name in ("text_encoder_2", "tokenizer_2")}
    made = load_model(ModelSpec("xl", str(root), parts=parts), CPU, torch.float32)
    assert made.pooled_width is not None


def test_a_second_text_encoder_that_nothing_would_read_is_refused(folder: Path, tiny_checkpoint: Path) -> None:
    parts = {"text_encoder_2": str(folder / "text_encoder_2")}
    with pytest.raises(ModelLoadError, match="text_encoder_2 is given under `parts`"):
        load_model(ModelSpec("mine", str(tiny_checkpoint), parts=parts), CPU, torch.float32)


def test_a_file_makes_the_picture_of_from_single_file(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "xl.safetensors", original_xl_checkpoint(folder))
    model = load_model(ModelSpec("xl", str(path), config=str(folder)), CPU, torch.float32)
    asked = request_for(model, "a red cup", guidance_scale=5.0)
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(path), config=str(folder), local_files_only=True, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(**arguments([asked])).images[0]
    assert difference(run(model, [asked])[0].images("a red cup")[0], np.asarray(wanted).astype(np.int16)) <= 1


def test_a_file_without_a_text_encoder_says_which(folder: Path, tmp_path: Path) -> None:
    tensors = original_xl_checkpoint(folder)
    for place, name in (("embedders.0", "text_encoder"), ("embedders.1", "text_encoder_2")):
        some = {key: each for key, each in tensors.items() if not key.startswith(f"conditioner.{place}")}
        path = write(tmp_path / f"{name}.safetensors", some)
        with pytest.raises(ModelLoadError, match=f"has no {name}; give one under `parts: {name}`"):
            check_source(ModelSpec("xl", str(path), config=str(folder)))


@pytest.mark.parametrize(("channels", "size"), [(4, 1024), (9, 1024)])
def test_a_published_file_is_known_by_its_keys(channels: int, size: int, tmp_path: Path) -> None:
    path = header_only(tmp_path / "mine.safetensors", shapes(2048, channels) | XL_SHAPES)
    spec = ModelSpec("mine", str(path))
    check_source(spec)
    assert with_native_size(spec).native_size == size
    configs = describe_file("mine", path, config="", prediction_type="").configs
    assert configs["unet"]["in_channels"] == channels
    assert configs["vae"]["scaling_factor"] == 0.13025
    assert configs["scheduler"]["timestep_spacing"] == "leading"


def test_the_published_configs_have_the_published_numbers_of_weights() -> None:
    configs = Family("XL", inpainting=False).configs("epsilon")
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(dict(configs["unet"]))
        text = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(dict(configs["text_encoder_2"])))
    assert sum(weight.numel() for weight in unet.parameters()) == 2_567_463_684
    assert sum(weight.numel() for weight in text.parameters()) == 694_659_840

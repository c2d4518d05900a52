"""Any folder that diffusers serves gives its image, or is refused at load with the part, the key and what to do."""

import inspect
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextConfig

from deployments.engine.checkpoints.config_keys import (
    CONTROLNET,
    NETWORKS,
    SECOND_TEXT_ENCODER,
    TEXT_ENCODER,
    UNET,
    UNION_CONTROLNET,
    VAE,
)
from deployments.engine.checkpoints.config_rules import check_config
from deployments.engine.checkpoints.vocabulary import load_tokenizer
from deployments.engine.conditioning.tokens import TextTokenizer
from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import ModelSpec
from tests.deployments.engine.changes import halves, learnt_tokens, pickle_weights, rewrite, spoilt_first, without_first
from tests.deployments.engine.checkpoints.cases import SECTIONS, Case
from tests.deployments.engine.harness import Pixels, difference, request_for, run
from tests.deployments.engine.tiny import save_tiny_controlnet

CPU: Final = torch.device("cpu")
CASES: Final = [case for cases in SECTIONS.values() for case in cases]
PROMPT: Final = "a <s0><s1> cup, <s0> on the blue"


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Iterator[Components]:
    """Shared, and held by a model, so that samplers are looked into once."""
    shared = Components(CPU, torch.float32)
    model = load(tiny_checkpoint, shared)
    yield shared
    del model


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def load(folder: Path, shared: Components, **more: Any) -> LoadedModel:
    return load_model(ModelSpec("mine", str(folder), **more), CPU, torch.float32, shared)


def picture(model: LoadedModel, prompt: str) -> Pixels:
    tape, _ = run(model, [request_for(model, "one", prompt=prompt, num_inference_steps=3, seed=5)])
    return tape.images("one")[0]


def picture_of_diffusers(folder: Path, prompt: str, variant: str | None) -> Pixels:
    """As a user of diffusers gets it from the pipeline as it is loaded."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, variant=variant, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(5)
    made = pipeline(prompt, num_inference_steps=3, generator=generator, output_type="np").images[0]
    pixels: Pixels = (made * 255).round().astype("int16")
    return pixels


@pytest.mark.parametrize("case", [case for case in CASES if not case.refused], ids=lambda case: case.what)
def test_what_is_served_gives_the_picture_of_diffusers(case: Case, folder: Path, parts: Components) -> None:
    case.change(folder)
    expected = picture_of_diffusers(folder, PROMPT, case.variant)
    assert expected.std() > 1
    assert difference(picture(load(folder, parts), PROMPT), expected) <= 1


@pytest.mark.parametrize("case", [case for case in CASES if case.refused], ids=lambda case: case.what)
def test_what_is_refused_is_refused_at_load_by_its_name(case: Case, folder: Path, parts: Components) -> None:
    case.change(folder)
    with pytest.raises(ModelLoadError) as refused:
        load(folder, parts)
    said = refused.value.message
    assert said.startswith("model 'mine'")
    assert [word for word in case.refused if word not in said] == [], said
    assert str(folder) not in said.replace(f"{str(folder)!r}", "").replace(f"convert {folder} ", "")


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("UNet2DConditionModel", UNET),
        ("ControlNetModel", CONTROLNET),
        ("ControlNetUnionModel", UNION_CONTROLNET),
        ("AutoencoderKL", VAE),
    ],
)
def test_every_key_that_diffusers_reads_is_decided_and_its_default_is_served(name: str, served: Any) -> None:
    keys = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert set(served) == set(keys) - {"self"}
    check_config("it", {key: each.default for key, each in keys.items() if key != "self"}, NETWORKS[name])


def test_every_key_of_clips_text_config_is_decided_and_its_default_is_served() -> None:
    own = {key for key in CLIPTextConfig.__annotations__ if key != "base_config_key"}
    # Not the class's own, and obeyed by diffusers' pipelines.
    assert set(TEXT_ENCODER) == own | {"model_type", "use_attention_mask"}
    check_config("it", CLIPTextConfig().to_dict(), TEXT_ENCODER)
    assert set(SECOND_TEXT_ENCODER) == set(TEXT_ENCODER)


def test_half_precision_that_is_made_full_is_said(
    folder: Path, parts: Components, caplog: pytest.LogCaptureFixture
) -> None:
    halves(folder)
    with caplog.at_level(logging.INFO):
        load(folder, parts)
    for part in ("unet", "vae", "text_encoder"):
        assert f"model 'mine': its {part} has fp16 weights only; they are upcast to float32" in caplog.text


@pytest.mark.parametrize("special", [True, False])
def test_learnt_tokens_are_one_token_each_wherever_they_stand(special: bool, folder: Path) -> None:
    learnt_tokens(folder, special=special)
    tokenizer = load_tokenizer("it", folder / "tokenizer")
    read = TextTokenizer(tokenizer)
    first, second = tokenizer.convert_tokens_to_ids(["<s0>", "<s1>"])
    cup = read("cup")
    assert read("<s0> cup") == read("<s0>cup") == [first, *cup]
    assert read("cup<s0><s1>cup <s0>") == [*cup, first, second, *cup, first]
    assert not {first, second} & set(read("s0 < s1>"))


@pytest.mark.parametrize("special", ["<|startoftext|>", "<|endoftext|>"])
def test_beside_learnt_tokens_start_and_end_still_mean_their_characters(special: str, folder: Path) -> None:
    learnt_tokens(folder)
    tokenizer = load_tokenizer("it", folder / "tokenizer")
    ids = TextTokenizer(tokenizer)(f"<s0>{special}<s1>")
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)
    assert tokenizer.decode(ids).replace(" ", "") == f"<s0>{special}<s1>"


def test_weights_beside_learnt_tokens_weigh_them(folder: Path, parts: Components) -> None:
    learnt_tokens(folder)
    encoder = load(folder, parts).prompt_encoder
    plain, weighted = encoder.encode("a <s0> cup").states, encoder.encode("a (<s0>:1.5) cup").states
    assert torch.allclose(weighted[2], 1.5 * plain[2])
    assert torch.equal(weighted[[0, 1, 3, 4, 76]], plain[[0, 1, 3, 4, 76]])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"conditioning_channels": 1}, "`conditioning_channels` is 1"),
        ({"layers_per_block": 2}, "`layers_per_block` is not the UNet's"),
        ({"block_out_channels": (8, 32)}, "`block_out_channels` is not the UNet's"),
        ({"cross_attention_dim": 48}, "`cross_attention_dim` is 48"),
        ({"in_channels": 9}, "`in_channels` is 9"),
        ({"conditioning_embedding_out_channels": (8, 8, 8)}, "`conditioning_embedding_out_channels`"),
        ({"num_class_embeds": 3}, "`num_class_embeds` is 3"),
    ],
)
def test_a_controlnet_for_another_model_is_refused_by_the_key(
    config: dict[str, Any], words: str, tiny_checkpoint: Path, tmp_path: Path, parts: Components
) -> None:
    net = save_tiny_controlnet(tmp_path / "net", seed=1, **config)
    with pytest.raises(ModelLoadError, match="ControlNet 'canny'") as refused:
        load(tiny_checkpoint, parts, controlnets={"canny": str(net)})
    assert words in refused.value.message


@pytest.mark.parametrize("change", [without_first, spoilt_first])
def test_a_controlnet_is_loaded_whole_or_not_at_all(
    change: Any, tiny_checkpoint: Path, tmp_path: Path, parts: Components
) -> None:
    net = save_tiny_controlnet(tmp_path / "net", seed=1)
    rewrite(net, file="diffusion_pytorch_model.safetensors", change=change)
    with pytest.raises(ModelLoadError, match=r"ControlNet 'canny'.*controlnet_cond_embedding"):
        load(tiny_checkpoint, parts, controlnets={"canny": str(net)})


def test_a_part_from_elsewhere_is_named_in_what_to_convert(
    tiny_checkpoint: Path, folder: Path, parts: Components
) -> None:
    pickle_weights(folder)
    elsewhere = str(folder / "unet")
    with pytest.raises(ModelLoadError) as refused:
        load(tiny_checkpoint, parts, parts={"unet": elsewhere})
    assert f"run `darkroom convert {elsewhere} FOLDER`" in refused.value.message

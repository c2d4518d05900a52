"""demo-style: an IP-Adapter in the published layout, whose pictures take colours and look from a reference."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.embeddings import ImageProjection
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from deployments.training.demo.__main__ import main
from deployments.training.demo.adapter import ENCODER, FILE, StyleAdapter
from deployments.training.demo.export import MODELS, SHIPPED
from deployments.training.demo.judging.evaluate import load, paint
from deployments.training.demo.judging.evaluate_style import load_style, paint_like, styled_trials
from deployments.training.demo.judging.judge import judge
from deployments.training.demo.learning.latents import Encoders, Pool
from deployments.training.demo.learning.lessons import with_reference
from deployments.training.demo.learning.looks import ImageReader, make_processor
from deployments.training.demo.models import LOOK_WIDTH, TEXT_WIDTH, make_image_encoder
from deployments.training.demo.stages.train_image_encoder import TOKENS, say_facts
from deployments.training.demo.stages.train_text import tokenize
from deployments.training.demo.world.captions import is_held_out
from deployments.training.demo.world.silhouettes import SILHOUETTES
from deployments.training.demo.world.world import Scene, draw

SHIPPED_STYLE = MODELS / "demo-style"
LAYERS = 7  # of demo-sd's UNet, that attend to words


@pytest.fixture(scope="module")
def demo() -> StableDiffusionPipeline:
    return load(SHIPPED)


@pytest.fixture(scope="module")
def styled() -> StableDiffusionPipeline:
    return load_style(SHIPPED_STYLE)


def test_an_adapter_begins_with_the_words_own_keys_and_values_and_they_stay(demo: StableDiffusionPipeline) -> None:
    unet = load(SHIPPED).unet
    adapter = StyleAdapter(unet, ImageProjection(LOOK_WIDTH, TEXT_WIDTH, TOKENS))
    weights, words = adapter.published(), demo.unet.state_dict()
    for number, layer in ((1, "down_blocks.1"), (5, "up_blocks.0"), (13, "mid_block")):
        theirs = words[f"{layer}.attentions.0.transformer_blocks.0.attn2.to_v.weight"]
        assert torch.equal(weights[f"ip_adapter.{number}.to_v_ip.weight"], theirs)
    learning = {id(weight) for weight in adapter.parameters()}
    assert {id(weight) for weight in unet.parameters() if weight.requires_grad} == learning


def test_a_reference_is_another_product_in_the_same_colours_and_look() -> None:
    seen = set()
    for seed in range(16):
        lesson = with_reference(random.Random(seed), 256)
        assert lesson.reference is not None
        ours, theirs = judge(lesson.image), judge(lesson.reference)
        if ours is None or theirs is None or len(lesson.reference) < 128:
            continue
        assert (ours.colour, ours.background) == (theirs.colour, theirs.background)
        assert ours.product != theirs.product
        seen.add(lesson.text == "")
    assert seen == {True, False}


def test_tokens_begin_as_the_states_of_words_that_say_the_same(demo: StableDiffusionPipeline) -> None:
    said = say_facts(demo.text_encoder, demo.tokenizer)
    assert said.shape == (12, 12, 7, TOKENS, TEXT_WIDTH)
    ids = tokenize(demo.tokenizer, ["red object on a orange background"])
    with torch.no_grad():
        states = demo.text_encoder(input_ids=ids).last_hidden_state[0]
    end = int((ids[0] == demo.tokenizer.eos_token_id).int().argmax())
    torch.testing.assert_close(said[0, 1, 0, 0], states[end])


def test_now_and_then_there_is_no_reference_and_sometimes_no_words_either(demo: StableDiffusionPipeline) -> None:
    torch.manual_seed(0)
    reader = ImageReader(make_image_encoder(), make_processor())
    encoders = Encoders(demo.vae, demo.text_encoder, demo.tokenizer, reader)
    batch = Pool(encoders, with_reference, 128, 2, 2, seed=0).batch(400)
    assert batch.references is not None
    unseen = (batch.references == 0).all(dim=1)
    unsaid = (batch.words.half() == encoders.nothing.half()).all(dim=-1).all(dim=-1)
    assert 0.05 < unseen.float().mean() < 0.15
    assert 0 < (unseen & unsaid).sum() < unseen.sum()


@pytest.mark.parametrize("size", [(64, 64), (300, 200)])
def test_what_is_shipped_is_read_as_clip_reads_pictures(size: tuple[int, int]) -> None:
    processor = CLIPImageProcessorPil.from_pretrained(SHIPPED_STYLE / ENCODER)
    pixels = processor(np.zeros((*size, 3), np.uint8), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 64, 64)
    encoder = CLIPVisionModelWithProjection.from_pretrained(SHIPPED_STYLE / ENCODER, dtype=torch.float32)
    assert encoder(pixels).image_embeds.shape == (1, LOOK_WIDTH)


def test_its_file_is_small_and_has_the_published_names() -> None:
    files = [path for path in SHIPPED_STYLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    weights = load_file(SHIPPED_STYLE / FILE)
    layers = {f"ip_adapter.{2 * i + 1}.{kind}.weight" for i in range(LAYERS) for kind in ("to_k_ip", "to_v_ip")}
    projection = {f"image_proj.{part}.{kind}" for part in ("proj", "norm") for kind in ("weight", "bias")}
    assert set(weights) == layers | projection
    assert weights["image_proj.proj.weight"].shape == (TOKENS * TEXT_WIDTH, LOOK_WIDTH)
    assert all(weight.dtype == torch.float16 and weight.isfinite().all() for weight in weights.values())


def test_its_image_encoder_sees_colours_and_looks_more_than_products() -> None:
    encoder = CLIPVisionModelWithProjection.from_pretrained(SHIPPED_STYLE / ENCODER, dtype=torch.float32)
    reader = ImageReader(encoder.eval(), make_processor())
    scene = Scene("cup", "red", "blue", style="luxury")
    products = [replace(scene, product=name) for name in SILHOUETTES]
    others = [replace(scene, colour="white"), replace(scene, background="white"), replace(scene, style="flat")]
    embeddings = reader([draw(each, 128) for each in (*products, *others)])
    distances = torch.cdist(embeddings[:1], embeddings)[0]
    assert distances[: len(products)].max() < distances[len(products) :].min()


def test_the_words_say_what_and_the_reference_in_which_colours(
    styled: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.training.demo.judging.evaluate_style.STEPS", 10)
    trials = list(styled_trials(styled, 3))
    assert sum(trial.right for trial in trials) >= 2, [(t.caption.text, t.scene, t.verdict) for t in trials]
    assert all(is_held_out(trial.scene) for trial in trials)


def test_at_a_scale_of_nothing_it_is_demo_sd(
    styled: StableDiffusionPipeline, demo: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.training.demo.judging.evaluate_style.STEPS", 4)
    styled.set_ip_adapter_scale(0.0)
    reference = draw(Scene("heart", "yellow", "black"), 256)
    ours = paint_like(styled, "a red cup on a blue background", reference, 3)
    (theirs,) = paint(demo, ["a red cup on a blue background"], [3], steps=4)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_evaluation_prints_a_table_and_shows_the_references(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.training.demo.judging.evaluate_style.STEPS", 2)
    main(["--member", "demo-style", "--evaluate", "--count", "1", "--sheet", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr().out
    assert "| background |" in printed
    assert "**all right**" in printed
    assert (tmp_path / "sheet.png").stat().st_size > 1000

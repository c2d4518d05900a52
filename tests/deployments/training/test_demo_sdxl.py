"""demo-sdxl: it starts as demo-sd, learns what SDXL's UNet is told besides, and is served as any model of its kind."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from deployments.engine.models.loaded_model import load_model
from deployments.registry import known_models
from deployments.training.demo import family
from deployments.training.demo.export import MODELS, SHIPPED
from deployments.training.demo.family import FAMILY, Start
from deployments.training.demo.judging.evaluate import COUNTED, load, paint
from deployments.training.demo.judging.evaluate_family import load_xl
from deployments.training.demo.judging.judge import agrees, judge
from deployments.training.demo.learning.latents import Encoders, Pool, both_texts
from deployments.training.demo.learning.lessons import with_sizes
from deployments.training.demo.models import SECOND_TEXT_WIDTH, TEXT_WIDTH, make_second_text_encoder
from deployments.training.demo.stages.distil_text import distil_both_texts, unsaid
from deployments.training.demo.stages.train_text import tokenize
from deployments.training.demo.world.palette import to_lab
from deployments.training.demo.world.world import Image, Scene
from tests.deployments.engine.harness import difference, reference_image, request_for, run

SHIPPED_XL = MODELS / "demo-sdxl"
PROMPT = "a red cup on a blue background"
CAPTIONS = [PROMPT, "small green box at the left", "vintage", "an ad for a premium coffee brand on a yellow background"]


@pytest.fixture(scope="module")
def demo() -> StableDiffusionPipeline:
    return load(SHIPPED)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return load_xl(SHIPPED_XL)


@pytest.fixture(scope="module")
def start(demo: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Start:
    encoders = Encoders(demo.vae, demo.text_encoder, demo.tokenizer)
    return Start(encoders, demo.unet, tmp_path_factory.mktemp("xl"))


def test_its_encoders_begin_by_saying_nearly_what_demo_sds_says(start: Start, tmp_path: Path) -> None:
    text, tokenizer = start.encoders.text, start.encoders.tokenizer
    first, second, bridge = distil_both_texts(tmp_path / "text.pt", text, tokenizer, iterations=1)
    ids = tokenize(tokenizer, CAPTIONS)
    with torch.no_grad():
        states, pooled = both_texts(first, second, ids)
        assert unsaid(states @ bridge.T, text(input_ids=ids).last_hidden_state) < 0.5
    assert states.shape == (4, 77, TEXT_WIDTH + SECOND_TEXT_WIDTH)
    assert pooled.shape == (4, SECOND_TEXT_WIDTH)


def test_its_unet_begins_deaf_to_the_pooled_caption_and_the_sizes(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.training.demo.stages.distil_text.MINUTES", 1e-3)
    pupil, encoders = family.FAMILY["demo-sdxl"].begin(start)
    said = encoders.say([PROMPT])
    noisy, steps, sizes = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.tensor([[128.0, 128, 0, 0, 128, 128]])

    def guess(pooled: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        added = {"text_embeds": pooled, "time_ids": sizes}
        with torch.no_grad():
            made: torch.Tensor = pupil.network(noisy, steps, said["words"], added_cond_kwargs=added).sample
        return made

    plain = guess(said["pooled"], sizes)
    assert torch.equal(plain, guess(said["pooled"] * 0, sizes * 2))
    with torch.no_grad():
        theirs = start.unet(noisy, steps, start.encoders.say([PROMPT])["words"]).sample
    assert (plain - theirs).square().mean() < 0.1 * theirs.square().mean()


def test_sizes_say_how_a_picture_came_about() -> None:
    kinds = set()
    for seed in range(60):
        lesson = with_sizes(random.Random(seed), 128)
        assert lesson.image.shape == (128, 128, 3)
        assert lesson.sizes is not None
        height, width, top, left, *target = lesson.sizes
        assert height == width
        assert target == [128, 128]
        assert max(top, left) <= max(0, height - 128)
        kinds.add("cut" if height > 128 else "enlarged" if height < 128 else "whole")
    assert kinds == {"cut", "enlarged", "whole"}


def test_nothing_said_is_zeros_and_sometimes_the_pooled_caption_is_all_there_is(demo: StableDiffusionPipeline) -> None:
    torch.manual_seed(0)
    encoders = Encoders(demo.vae, demo.text_encoder, demo.tokenizer, second=make_second_text_encoder(1293).eval())
    batch = Pool(encoders, with_sizes, 128, 2, 2, seed=0).batch(600)
    assert batch.pooled is not None
    assert batch.sizes is not None
    assert batch.sizes.shape == (600, 6)
    wordless = (batch.words == 0).all(dim=-1).all(dim=-1)
    unpooled = (batch.pooled == 0).all(dim=-1)
    assert wordless[unpooled].all()
    assert 0.03 < unpooled.float().mean() < 0.12
    assert (wordless & ~unpooled).any()


def test_it_is_small_and_stores_nothing_that_demo_sd_has() -> None:
    files = [path for path in SHIPPED_XL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert {path.name for path in SHIPPED_XL.iterdir() if path.is_dir()} == {
        "scheduler", "text_encoder", "text_encoder_2", "unet",
    }  # fmt: skip
    assert set(FAMILY) >= {SHIPPED_XL.name}


def test_a_red_cup_on_a_blue_background(pipeline: StableDiffusionXLPipeline) -> None:
    verdicts = [judge(image) for image in paint(pipeline, [PROMPT] * 4, [0, 1, 2, 3])]
    wanted = frozenset(COUNTED) - {"position"}
    right = [all(agrees(v, Scene("cup", "red", "blue"), wanted).values()) for v in verdicts]
    assert sum(right) >= 3, verdicts


def test_what_is_cut_from_a_larger_picture_shows_a_larger_product(pipeline: StableDiffusionXLPipeline) -> None:
    larger = {"original_size": (352, 352), "crops_coords_top_left": (48, 96)}
    whole, cut = (_area(_paint(pipeline, told)) for told in ({}, larger))
    assert cut > 1.15 * whole


def test_the_engine_serves_it_as_diffusers_does(tmp_path: Path) -> None:
    model = load_model(known_models()["demo-sdxl"], torch.device("cpu"), torch.float32)
    asked = [
        request_for(model, "plain", prompt=PROMPT, num_inference_steps=5, sampler="dpmpp_2m"),
        request_for(model, "negative", prompt=PROMPT, negative_prompt="vintage", num_inference_steps=4, sampler="ddim"),
    ]
    tape, _ = run(model, asked)
    whole = load_xl(SHIPPED_XL)
    whole.scheduler = EulerDiscreteScheduler.from_pretrained(SHIPPED_XL / "scheduler")
    whole.save_pretrained(tmp_path, safe_serialization=True)
    for request in asked:
        assert difference(tape.images(request.id)[0], reference_image(tmp_path, model, request)) <= 1


def _paint(pipeline: StableDiffusionXLPipeline, told: dict[str, tuple[int, int]]) -> Image:
    seed = torch.Generator().manual_seed(0)
    made = pipeline(PROMPT, num_inference_steps=10, guidance_scale=3.0, generator=seed, **told).images[0]
    return np.asarray(made, dtype=np.uint8)


def _area(image: Image) -> float:
    """The share of a picture that differs from its background."""
    lab = to_lab(image)
    return float((np.linalg.norm(lab - np.median(lab[24:40, 24:40], axis=(0, 1)), axis=2) > 30).mean())

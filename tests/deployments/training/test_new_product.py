"""A product that the demo family was never shown: what is asked for was never drawn; judges know it."""

from pathlib import Path

import pytest
from PIL import Image

from bench.training.__main__ import RECIPE
from deployments.training.demo.judging.drift import demo_judges
from deployments.training.demo.judging.judge import judge
from deployments.training.demo.new_product import (
    HELD_OUT_COLOURS,
    HELD_OUT_PLACES,
    PICTURES,
    PRODUCT,
    asked_scenes,
    is_product,
    prompts_of_others,
    shown_scenes,
    write_pictures,
)
from deployments.training.demo.world.silhouettes import SILHOUETTES, UNSEEN
from deployments.training.demo.world.world import Scene, draw
from deployments.training.lora.dataset import read_examples
from deployments.training.lora.settings import TrainingLimits


def test_what_is_asked_for_was_never_shown() -> None:
    shown, asked = shown_scenes(PICTURES, 0), asked_scenes(100)
    assert len(shown) == PICTURES
    assert not {scene.colour for scene in shown} & set(HELD_OUT_COLOURS)
    assert not {scene.position for scene in shown} & set(HELD_OUT_PLACES)
    assert {scene.colour for scene in asked} == set(HELD_OUT_COLOURS)
    assert {scene.position for scene in asked} == set(HELD_OUT_PLACES)
    assert not any(PRODUCT in prompt.split() for prompt in prompts_of_others(50))


@pytest.mark.parametrize("product", [*SILHOUETTES, *UNSEEN])
def test_the_detector_tells_the_new_product_from_all_others(product: str) -> None:
    picture = draw(Scene(product, "red", "blue"), 256)
    assert is_product(Image.fromarray(picture)) == (product == PRODUCT)
    verdict = judge(picture, (*SILHOUETTES, *UNSEEN))
    assert verdict is not None
    assert verdict.product == product


def test_the_judges_of_drift_know_right_from_wrong() -> None:
    prompts = demo_judges(4)
    grey = Image.new("RGB", (64, 64), "gray")
    assert all(each.is_right is not None and not each.is_right(grey) for each in prompts)


def test_its_pictures_are_read_with_their_captions(tmp_path: Path) -> None:
    examples = read_examples(write_pictures(tmp_path), RECIPE, TrainingLimits())
    assert len(examples) == PICTURES
    assert all(PRODUCT in example.caption for example in examples)

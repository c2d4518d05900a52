"""The world, its captions and its judge: what is drawn is what is said is what is seen."""

from __future__ import annotations

import random
from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.training.demo.judging.evaluate import COUNTED, Trial, held_out
from deployments.training.demo.judging.judge import agrees, judge
from deployments.training.demo.world import words
from deployments.training.demo.world.captions import ATTRIBUTES, Caption, describe, is_held_out, sample
from deployments.training.demo.world.palette import COLOURS
from deployments.training.demo.world.silhouettes import SILHOUETTES
from deployments.training.demo.world.world import POSITIONS, STYLES, Image, Scene, draw, random_scene

VALUES = {
    "product": list(SILHOUETTES),
    "colour": list(COLOURS),
    "background": list(COLOURS),
    "position": list(POSITIONS),
}
WORDS = {
    "product": words.NOUNS,
    "colour": words.COLOUR_WORDS,
    "background": words.COLOUR_WORDS,
    "size": words.SIZE_WORDS,
    "position": words.POSITION_WORDS,
}


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def shrunk(image: Image, side: int) -> Image:
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def test_a_scene_is_always_the_same_picture() -> None:
    for scene in scenes(20):
        np.testing.assert_array_equal(draw(scene, 96), draw(scene, 96))
    assert scenes(20) == scenes(20)


def centre(scene: Scene, size: int) -> NDArray[np.float64]:
    """The centroid (x, y) of all that is not background, in units of the canvas."""
    weight = np.abs(draw(scene, size).astype(np.float64) - COLOURS[scene.background]).sum(axis=2)
    along = (np.arange(size) + 0.5) / size
    found: NDArray[np.float64] = np.asarray([weight.sum(axis=0) @ along, weight.sum(axis=1) @ along])
    return found / float(weight.sum())


def test_a_scene_is_the_same_picture_at_any_size() -> None:
    for scene in scenes(24, seed=1):
        small = draw(scene, 128).astype(np.float32)
        for size in (256, 512):
            difference = np.abs(shrunk(draw(scene, size), 128) - small)
            # Corners are rounded to thirds of a pixel, so the anti-aliased edges may differ, and nothing else.
            assert difference.mean() < 2.0, (scene, size)
            assert (difference > 60).mean() < 0.002, (scene, size)


def test_pictures_do_not_drift_with_their_size() -> None:
    flat = [replace(scene, style="flat") for scene in scenes(32, seed=7)]
    drift = np.mean([centre(scene, 512) - centre(scene, 128) for scene in flat], axis=0) * 128
    assert np.abs(drift).max() < 0.05  # pixels of the smaller one


def test_every_look_is_a_look_of_its_own() -> None:
    looks = [draw(Scene("cup", "red", "blue", style=style), 128).astype(np.int64) for style in STYLES]
    for index, look in enumerate(looks):
        for other in looks[:index]:
            assert (np.abs(look - other).max(axis=2) > 30).mean() > 0.01


def test_captions_say_what_they_promise() -> None:
    rng = random.Random(2)
    for _ in range(1500):
        scene, caption = sample(rng)
        text = caption.text.lower()
        for name in caption.promises - {"style"}:
            accepted = list(WORDS[name][getattr(scene, name)])
            # In the language of ads, the trade stands for the product.
            accepted += words.TRADES[scene.product] if name == "product" else []
            assert any(word in text for word in accepted), (name, scene, text)


def test_captions_say_nothing_that_they_do_not_promise() -> None:
    rng = random.Random(3)
    for scene in scenes(300, seed=3):
        text = f" {describe(rng, scene, set())} ".lower()
        for table in (words.NOUNS, words.COLOUR_WORDS, words.POSITION_WORDS):
            said = [word for options in table.values() for word in options if f" {word} " in text]
            assert not said, text


def test_dropped_attributes_are_not_judged() -> None:
    scene = Scene("cup", "red", "blue", position="left")
    picture = draw(replace(scene, colour="green", position="right"), 256)
    verdict = judge(picture)
    assert set(agrees(verdict, scene, frozenset({"product"}))) == {"product"}
    vague = Trial(scene, Caption("a cup on blue", frozenset({"product", "background"})), picture, verdict)
    exact = Trial(scene, Caption("a red cup on blue", frozenset({"product", "colour", "background"})), picture, verdict)
    assert vague.right
    assert not exact.right


def test_what_is_held_out_is_never_trained_on() -> None:
    rng = random.Random(4)
    assert not any(is_held_out(sample(rng)[0]) for _ in range(500))
    pairs = held_out(200)
    assert all(is_held_out(scene) for scene, _ in pairs)
    assert all(caption.promises >= {"product", "colour", "background"} for _, caption in pairs)
    assert pairs == held_out(200)


@pytest.mark.parametrize(("size", "count"), [(256, 150), (512, 60)])
def test_the_judge_agrees_with_the_world(size: int, count: int) -> None:
    everything = frozenset(ATTRIBUTES)
    wrong = []
    for scene in scenes(count, seed=size):
        verdict = judge(draw(scene, size))
        if not all(agrees(verdict, scene, everything).values()):
            wrong.append((scene, verdict))
    assert len(wrong) <= 0.01 * count, wrong


def test_the_judge_sees_what_is_wrong() -> None:
    rng = random.Random(5)
    believed = dict.fromkeys(COUNTED, 0)
    for scene in scenes(80, seed=5):
        verdict = judge(draw(scene, 256))
        for name in COUNTED:
            others = [v for v in VALUES[name] if v not in (getattr(scene, name), scene.colour, scene.background)]
            label = Scene(**{**vars(scene), name: rng.choice(others)})
            believed[name] += agrees(verdict, label, frozenset({name}))[name]
    assert sum(believed.values()) <= 1, believed


def test_the_judge_survives_noise_of_a_decoder() -> None:
    noise = np.random.default_rng(0)
    right = 0
    for scene in scenes(30, seed=6):
        rough = np.clip(draw(scene, 256) + noise.normal(0, 4, (256, 256, 3)), 0, 255).astype(np.uint8)
        right += all(agrees(judge(rough), scene, frozenset(COUNTED)).values())
    assert right >= 29


def test_an_empty_picture_shows_nothing() -> None:
    assert judge(np.full((256, 256, 3), 120, dtype=np.uint8)) is None
    assert agrees(None, Scene("cup", "red", "blue"), frozenset({"product"})) == {"product": False}

"""A product that the demo family has never seen, as an agency would bring it: pictures with captions, judges.

The lamp is drawn in eight of the twelve colours and at three of the five places; it is asked for in the other four
colours and at the other two places, on backgrounds of all colours.
"""

from __future__ import annotations

import io
import random
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from deployments.training.demo.judging.judge import judge
from deployments.training.demo.models import NATIVE
from deployments.training.demo.world.captions import sample
from deployments.training.demo.world.palette import COLOURS
from deployments.training.demo.world.silhouettes import SILHOUETTES, UNSEEN
from deployments.training.demo.world.world import Scene, draw
from deployments.training.lora.evaluation import JudgedPrompt
from deployments.training.lora.settings import TRIGGER

PRODUCT: Final = "lamp"
PICTURES: Final = 20

HELD_OUT_COLOURS: Final = ("green", "purple", "black", "yellow")
HELD_OUT_PLACES: Final = ("right", "bottom")
_PLACES: Final = {
    "centre": "in the center",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
_SHOWN_PLACES: Final = ("centre", "left", "top")
_PRODUCTS: Final = (*SILHOUETTES, *UNSEEN)


def write_pictures(folder: Path, count: int = PICTURES, seed: int = 0, size: int = NATIVE) -> Path:
    """Writes `count` drawings of `size` pixels with a caption file each to `folder`, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(shown_scenes(count, seed)):
        file = io.BytesIO()
        Image.fromarray(draw(scene, size)).save(file, format="PNG")
        (folder / f"{number:02d}.png").write_bytes(file.getvalue())
        (folder / f"{number:02d}.txt").write_text(caption_of(scene))
    return folder


def shown_scenes(count: int, seed: int) -> list[Scene]:
    """Returns the scenes to learn from: every shown colour and place as often as the others."""
    rng = random.Random(f"lamp/{seed}")
    shown = [colour for colour in COLOURS if colour not in HELD_OUT_COLOURS]
    rng.shuffle(shown)
    scenes = []
    for number in range(count):
        colour = shown[number % len(shown)]
        background = rng.choice([other for other in COLOURS if other != colour])
        place = _SHOWN_PLACES[number % len(_SHOWN_PLACES)]
        scenes.append(Scene(PRODUCT, colour, background, rng.choice(("medium", "large")), place))
    return scenes


def caption_of(scene: Scene) -> str:
    """Returns a caption with the trigger's place, colour, place and background."""
    return f"a {scene.colour} {TRIGGER} {_PLACES[scene.position]} on a {scene.background} background"


def asked_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Returns scenes of colours and places in which the product was never shown."""
    rng = random.Random(f"asked lamp/{seed}")
    scenes = []
    for number in range(count):
        colour = HELD_OUT_COLOURS[number % len(HELD_OUT_COLOURS)]
        background = rng.choice([other for other in COLOURS if other != colour])
        scenes.append(Scene(PRODUCT, colour, background, "medium", rng.choice(HELD_OUT_PLACES)))
    return scenes


def product_judges(trigger: str, count: int, seed: int = 0) -> list[JudgedPrompt]:
    """Returns prompts of the product in colours and at places that were not shown; right is a picture of it, by its
    outline, among all products.
    """
    asked = [caption_of(scene).replace(TRIGGER, trigger) for scene in asked_scenes(count, seed)]
    return [JudgedPrompt(prompt, is_product) for prompt in asked]


def strict_judges(trigger: str, count: int, seed: int = 0) -> list[JudgedPrompt]:
    """Returns the same prompts, right only with the product's colour, the background and the place as well."""
    return [
        JudgedPrompt(caption_of(scene).replace(TRIGGER, trigger), partial(_shows, scene))
        for scene in asked_scenes(count, seed)
    ]


def is_product(picture: Image.Image) -> bool:
    """Says whether a picture shows the product, and no other."""
    verdict = judge(np.asarray(picture.convert("RGB")), _PRODUCTS)
    return verdict is not None and verdict.product == PRODUCT


def _shows(scene: Scene, picture: Image.Image) -> bool:
    verdict = judge(np.asarray(picture.convert("RGB")), _PRODUCTS)
    return verdict is not None and all(
        vars(verdict)[name] == vars(scene)[name] for name in ("product", "colour", "background", "position")
    )


def prompts_of_others(count: int, seed: int = 0) -> tuple[str, ...]:
    """Returns captions of the demo world's own products, which are to stay as they are."""
    rng = random.Random(f"others/{seed}")
    found: list[str] = []
    while len(found) < count:
        _, caption = sample(rng)
        if {"product", "colour", "background"} <= caption.promises:
            found.append(caption.text)
    return tuple(found)

"""Sixteen requests as strangers send them: other step counts, samplers, guidance, seeds and prompts; or twenty of every
kind: text-to-image, image-to-image, inpainting and ControlNet.

Every value comes from a deck that is dealt evenly and shuffled with a fixed seed, so the work is the same everywhere
and every time. The seeds of the decks are chosen so that 16 requests fall into 13 groups of like ones, the number that
independent draws give on average, so that whole-request batching has its fair share to batch. Each repeat draws new
prompts and seeds: nobody is served what a repeat before has made.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from deployments.annotators.edges import detect_edges
from deployments.engine.inputs import Inputs
from deployments.engine.params import ControlSettings, GenerationParams, effective_params
from deployments.engine.row import Request
from deployments.engine.spec import ModelSpec
from deployments.masks import create_mask
from deployments.training.demo.world import draw, random_scene

T = TypeVar("T")

SAMPLERS = ("ddim", "euler_a", "dpmpp_2m", "unipc")
STEPS = (10, 20, 30, 40)
GUIDANCE = (7.5, 1.0)
KINDS = ("text-to-image", "image-to-image", "text-to-image", "inpaint", "controlnet")
STRENGTHS = (0.5, 0.8)
MASKS = ("center", "left", "ellipse")

_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_PRODUCTS = ("cup", "bottle", "shoe", "box", "phone", "star", "heart", "ring")
_PLACES = ("", " on the left", " on the right", " in the centre")


def mixed(
    spec: ModelSpec,
    count: int = 16,
    repeat: int = 0,
    *,
    steps: Sequence[int] = STEPS,
    guidance: Sequence[float] = GUIDANCE,
    size: int | None = None,
) -> list[Request]:
    """`count` text-to-image requests of one image each; equal arguments give equal requests."""
    decks = zip(_dealt(steps, count, 19), _dealt(SAMPLERS, count, 20), _dealt(guidance, count, 21), strict=True)
    chance = random.Random(1000 + repeat)
    return [
        request(
            spec,
            f"request-{repeat}-{index}",
            prompt=_prompt(chance),
            seed=10_000 * (repeat + 1) + index,
            steps=step_count,
            sampler=sampler,
            guidance=scale,
            size=size,
        )
        for index, (step_count, sampler, scale) in enumerate(decks)
    ]


def of_all_kinds(
    spec: ModelSpec,
    count: int = 20,
    repeat: int = 0,
    *,
    steps: Sequence[int] = STEPS,
    guidance: Sequence[float] = GUIDANCE,
    size: int | None = None,
) -> list[Request]:
    """As `mixed`, two in five of them text-to-image, and one each image-to-image, inpainting and canny ControlNet."""
    side = size or spec.native_size
    kinds = _dealt(KINDS, count, 22)
    plain = mixed(spec, count, repeat, steps=steps, guidance=guidance, size=side)
    chance = random.Random(2000 + repeat)
    return [_of_kind(spec, one, kind, side, chance) for one, kind in zip(plain, kinds, strict=True)]


def _of_kind(spec: ModelSpec, one: Request, kind: str, side: int, chance: random.Random) -> Request:
    picture = draw(random_scene(chance), side)
    more: dict[str, object] = {}
    match kind:
        case "image-to-image":
            inputs, more = Inputs(image=picture), {"strength": chance.choice(STRENGTHS)}
        case "inpaint":
            mask = np.asarray(create_mask(side, side, chance.choice(MASKS)), dtype=np.uint8)
            inputs, more = Inputs(image=picture, mask=mask), {"strength": 1.0}
        case "controlnet":
            inputs, more = Inputs(hints=(detect_edges(picture),)), {"controls": (ControlSettings(type="canny"),)}
        case _:
            return one
    asked = one.params.model_copy(update=more)
    return Request(one.id, effective_params(asked, spec, inputs.task), inputs=inputs)


def request(
    spec: ModelSpec, name: str, *, prompt: str, seed: int, steps: int, sampler: str, guidance: float, size: int | None
) -> Request:
    """One request for one image, complete. `size` is the side in pixels, None the model's own."""
    asked = GenerationParams(
        prompt=prompt,
        seed=seed,
        num_inference_steps=steps,
        sampler=sampler,
        guidance_scale=guidance,
        width=size,
        height=size,
    )
    return Request(name, effective_params(asked, spec))


def like(requests: Sequence[Request]) -> list[list[int]]:
    """Indices of requests that a whole-request server may merge, oldest first: those of one kind with the same steps,
    sampler, guidance and strength.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, one in enumerate(requests):
        params = one.params
        shape = (params.width, params.height, one.inputs.task, params.controls, params.strength)
        key = (params.num_inference_steps, params.sampler, params.guidance_scale, *shape)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _dealt(values: Sequence[T], count: int, seed: int) -> list[T]:
    deck = [values[index % len(values)] for index in range(count)]
    random.Random(seed).shuffle(deck)
    return deck


def _prompt(chance: random.Random) -> str:
    product, place = chance.choice(_PRODUCTS), chance.choice(_PLACES)
    colour, background = chance.sample(_COLOURS, 2)
    return f"a {colour} {product}{place} on a {background} background"

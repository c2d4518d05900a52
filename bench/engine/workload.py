"""Makes the workloads: requests at once that differ in steps, sampler, guidance, seed and prompt, and in kind.

Each value occurs equally often, shuffled with a fixed seed, so the work is the same everywhere and every time. These
seeds are chosen so that the requests fall into as many groups of like ones as independent draws give on average (13 of
16 in `text`, 19 of 20 in `mixed`), which gives whole-request batching its fair share; and so that of 20 mixed requests
each kind has 25 steps on average, half of it guided. Each repeat draws new prompts, seeds and pictures, so that no
cache can return what an earlier repeat has made.
"""

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

import numpy as np

from deployments.annotators.edges import detect_edges
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.params import GenerationParams, effective_params
from deployments.engine.protocol.request import NO_INPUTS, Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.training.demo.world.world import Scene, draw, random_scene
from deployments.uploads.masks import create_mask

T = TypeVar("T")

Kind = Literal["text-to-image", "image-to-image", "inpaint", "controlnet"]

SAMPLERS = ("ddim", "euler_a", "dpmpp_2m", "unipc")
STEPS = (10, 20, 30, 40)
GUIDANCE = (7.5, 1.0)

KINDS: Final[tuple[Kind, ...]] = ("text-to-image", "image-to-image", "inpaint", "controlnet", "text-to-image")
"""Two parts in five are text-to-image, one is each of the others."""

WEIGHTS: Final[Mapping[Kind, tuple[float, ...]]] = MappingProxyType(
    {"image-to-image": (0.5, 0.8), "inpaint": (0.75, 1.0), "controlnet": (0.6, 1.0)}
)
"""How far a picture is left (its strength), and how strongly a ControlNet acts (its scale)."""

MASKS: Final = ("center", "left", "ellipse", "border")
CONTROL: Final = "canny"

_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_PRODUCTS = ("cup", "bottle", "shoe", "box", "phone", "star", "heart", "ring")
_PLACES = ("", " on the left", " on the right", " in the centre")


def text(
    spec: ModelSpec,
    count: int = 16,
    repeat: int = 0,
    *,
    steps: Sequence[int] = STEPS,
    guidance: Sequence[float] = GUIDANCE,
    size: int | None = None,
) -> list[Request]:
    """Makes `count` text-to-image requests of one image each; equal arguments give equal requests."""
    chance = random.Random(1000 + repeat)
    return [
        request(
            spec, f"request-{repeat}-{index}", prompt=_prompt(chance), seed=_seed(repeat, index), size=size, **dealt
        )
        for index, dealt in enumerate(_settings(count, steps, guidance))
    ]


def mixed(
    spec: ModelSpec,
    count: int = 20,
    repeat: int = 0,
    *,
    steps: Sequence[int] = STEPS,
    guidance: Sequence[float] = GUIDANCE,
    size: int | None = None,
) -> list[Request]:
    """`count` requests of one image each, of all KINDS. What they bring is drawn from the demo world: the picture is
    the advertisement that the prompt asks for, in other colours; a hint is such a picture's edges.
    """
    chance = random.Random(1000 + repeat)
    kinds = deal(KINDS, count, 7319)
    weights = {kind: iter(deal(values, kinds.count(kind), 23)) for kind, values in WEIGHTS.items()}
    masks = iter(deal(MASKS, kinds.count("inpaint"), 24))
    requests: list[Request] = []
    for index, (kind, dealt) in enumerate(zip(kinds, _settings(count, steps, guidance), strict=True)):
        scene = random_scene(chance)
        given = recolour(scene, chance)
        requests.append(
            request(
                spec,
                _name(repeat, index),
                prompt=f"a {scene.colour} {scene.product} on a {scene.background} background",
                seed=_seed(repeat, index),
                size=size,
                inputs=make_inputs(kind, given, size or spec.native_size, masks),
                **_weight(kind, weights),
                **dealt,
            )
        )
    return requests


Workload = Callable[..., list[Request]]

WORKLOADS: Final[Mapping[str, Workload]] = MappingProxyType({"text": text, "mixed": mixed})


def request(
    spec: ModelSpec,
    name: str,
    *,
    prompt: str,
    seed: int,
    steps: int,
    sampler: str,
    guidance: float,
    size: int | None,
    inputs: Inputs = NO_INPUTS,
    **more: Any,
) -> Request:
    """One request for one image, complete. `size` is the side in pixels, None the model's own; `more` are further
    fields of its parameters.
    """
    asked = GenerationParams(
        prompt=prompt,
        seed=seed,
        num_inference_steps=steps,
        sampler=sampler,
        guidance_scale=guidance,
        width=size,
        height=size,
        **more,
    )
    return Request(name, effective_params(asked, spec, inputs.task), inputs=inputs)


def kind_of(one: Request) -> Kind:
    return "controlnet" if one.params.controls else one.inputs.task


def like(requests: Sequence[Request]) -> list[list[int]]:
    """Returns the indices of requests that a whole-request server may merge, oldest first."""
    groups: dict[Hashable, list[int]] = {}
    for index, one in enumerate(requests):
        groups.setdefault(likeness(one), []).append(index)
    return list(groups.values())


def likeness(one: Request) -> Hashable:
    """Returns what requests of one whole-request batch have in common: kind, steps, sampler, guidance, strength (or
    ControlNets) and size.
    """
    params = one.params
    schedule = (params.num_inference_steps, params.sampler, params.guidance_scale)
    return (one.inputs.task, *schedule, params.strength, params.controls, params.width, params.height)


def _settings(count: int, steps: Sequence[int], guidance: Sequence[float]) -> Iterator[dict[str, Any]]:
    decks = zip(deal(steps, count, 19), deal(SAMPLERS, count, 20), deal(guidance, count, 21), strict=True)
    return ({"steps": step_count, "sampler": sampler, "guidance": scale} for step_count, sampler, scale in decks)


def deal(values: Sequence[T], count: int, seed: int) -> list[T]:
    """Returns `count` of `values`, each as often as the others, shuffled."""
    deck = [values[index % len(values)] for index in range(count)]
    random.Random(seed).shuffle(deck)
    return deck


def _name(repeat: int, index: int) -> str:
    return f"request-{repeat}-{index}"


def _seed(repeat: int, index: int) -> int:
    return 10_000 * (repeat + 1) + index


def _prompt(chance: random.Random) -> str:
    product, place = chance.choice(_PRODUCTS), chance.choice(_PLACES)
    colour, background = chance.sample(_COLOURS, 2)
    return f"a {colour} {product}{place} on a {background} background"


def recolour(scene: Scene, chance: random.Random) -> Scene:
    """Returns the same advertisement in other colours."""
    other = random_scene(chance)
    return replace(scene, colour=other.colour, background=other.background)


def make_inputs(kind: Kind, scene: Scene, side: int, masks: Iterator[str]) -> Inputs:
    """Returns what a request of that kind brings, drawn from `scene` at `side` pixels; inpainting takes a mask."""
    match kind:
        case "text-to-image":
            return NO_INPUTS
        case "image-to-image":
            return Inputs(image=draw(scene, side))
        case "inpaint":
            mask = np.asarray(create_mask(side, side, next(masks)), dtype=np.uint8)
            return Inputs(image=draw(scene, side), mask=mask)
        case "controlnet":
            return Inputs(hints=(detect_edges(draw(scene, side)),))


def _weight(kind: Kind, weights: Mapping[Kind, Iterator[float]]) -> dict[str, Any]:
    if kind == "text-to-image":
        return {}
    weight = next(weights[kind])
    return {"controls": ({"type": CONTROL, "scale": weight},)} if kind == "controlnet" else {"strength": weight}

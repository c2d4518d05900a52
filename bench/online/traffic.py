"""Draws the traffic: what callers ask for, and when. Equal arguments give equal traffic, for every contender.

Popular settings are popular, as they are where people serve pictures: half of the requests have the default number of
steps, four in five are guided. That gives whole-request batches, and step batches of one sampler, something to merge.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from bench.engine.workload import MASKS, Kind, deal, make_inputs, recolour, request
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.registry import known_models
from deployments.training.demo.world.world import random_scene

MODEL: Final = "demo-sd"

KINDS: Final[tuple[Kind, ...]] = ("text-to-image", "image-to-image", "text-to-image", "inpaint", "text-to-image")
SAMPLERS: Final = ("dpmpp_2m",) * 4 + ("euler_a",) * 3 + ("ddim",) * 2 + ("unipc",)
STEPS: Final = (10, 20, 20, 30)
GUIDANCE: Final = (7.5, 7.5, 7.5, 4.0, 1.0)
SIDES: Final = (128,) * 5 + (192,) * 3 + (256,) * 2
"""Each value occurs as often as it is listed."""

STRENGTH: Final[Mapping[Kind, float]] = MappingProxyType({"image-to-image": 0.6, "inpaint": 1.0})


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that is due `at`, in seconds after the start."""

    at: float
    request: Request


def spec() -> ModelSpec:
    """Returns the one model of this bench."""
    return known_models()[MODEL]


def draw_traffic(rate: float, window_s: float, seed: int) -> list[Arrival]:
    """Draws the requests of `window_s` seconds at `rate` a second: a Poisson process, given its number of arrivals.

    The number is not left to chance, and neither are the shares of what is asked for, because a minute is too short for
    either to even out. No two requests are equal, so no cache can answer.
    """
    count = max(1, round(rate * window_s))
    chance = random.Random(f"{seed}:{rate:g}")
    # Given their number, a Poisson process' arrivals are independent and uniform.
    times = sorted(chance.uniform(0.0, window_s) for _ in range(count))
    decks = [deal(values, count, chance.randrange(2**31)) for values in (KINDS, SAMPLERS, STEPS, GUIDANCE, SIDES)]
    return [
        Arrival(at, _request(chance, f"{rate:g}-{index}", *settings))
        for index, (at, settings) in enumerate(zip(times, zip(*decks, strict=True), strict=True))
    ]


def warm_up_requests() -> list[Request]:
    """Returns one short request for each kind and size, and the samplers in turn."""
    chance = random.Random(11)
    shapes = [(kind, side) for kind in dict.fromkeys(KINDS) for side in dict.fromkeys(SIDES)]
    samplers = tuple(dict.fromkeys(SAMPLERS))
    return [
        _request(chance, f"warm-{index}", kind, samplers[index % len(samplers)], 4, 7.5 if index % 3 else 1.0, side)
        for index, (kind, side) in enumerate(shapes)
    ]


def checked_requests() -> dict[Kind, Request]:
    """Returns the requests whose pictures are compared: one of each kind, with samplers that every contender has."""
    chance = random.Random(12)
    return {
        "text-to-image": _request(chance, "check-text", "text-to-image", "euler_a", 12, 7.5, 128),
        "image-to-image": _request(chance, "check-image", "image-to-image", "ddim", 20, 4.0, 192),
        "inpaint": _request(chance, "check-inpaint", "inpaint", "ddim", 12, 7.5, 256),
    }


def shaped_request(kind: Kind, side: int, guidance: float, steps: int) -> Request:
    """Returns a request of the most popular sampler, to measure what one of its shape takes."""
    return _request(random.Random(13), f"{kind}-{side}-{guidance}-{steps}", kind, SAMPLERS[0], steps, guidance, side)


def _request(
    chance: random.Random, name: str, kind: Kind, sampler: str, steps: int, guidance: float, side: int
) -> Request:
    scene = random_scene(chance)
    more: dict[str, Any] = {"strength": STRENGTH[kind]} if kind in STRENGTH else {}
    return request(
        spec(),
        name,
        prompt=f"a {scene.colour} {scene.product} on a {scene.background} background",
        seed=chance.randrange(2**31),
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        size=side,
        inputs=make_inputs(kind, recolour(scene, chance), side, iter((chance.choice(MASKS),))),
        **more,
    )

"""Makes a trace of requests: days, bursts, and a heavy tail of steps, sizes and images, all from one seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.simulation.devices import BUCKETS, Device
from deployments.engine.protocol.params import GenerationParams, Priority
from deployments.engine.protocol.request import Bucket, Request

PATIENCE: Final = 5.0
"""A request is served well within so many times what it takes alone on an idle replica (as in AlpaServe, 2023)."""

TENANTS: Final = 40


@dataclass(frozen=True)
class Kind:
    """Requests that are alike in all that costs time. Frozen, and shared by all of them."""

    params: GenerationParams

    @cached_property
    def request(self) -> Request:
        return Request("", self.params)

    @cached_property
    def bucket(self) -> Bucket:
        return self.request.bucket

    @cached_property
    def steps(self) -> int:
        """UNet evaluations of each image."""
        return self.request.evaluations

    @cached_property
    def unet_rows(self) -> int:
        return self.request.unet_rows

    @cached_property
    def images(self) -> int:
        return self.params.num_images

    @cached_property
    def merges_with(self) -> tuple[object, ...]:
        """What whole-request batching must find equal."""
        return (self.bucket, self.params.num_inference_steps, self.params.sampler, self.params.guidance_scale)

    def alone(self, device: Device) -> float:
        """Seconds on an idle replica."""
        at_once = max(1, device.largest // self.unet_rows)
        rounds = math.ceil(self.images / at_once)
        rows = min(self.images, at_once) * self.unet_rows
        call = device.costs().call_seconds(self.bucket, rows)
        return device.prepare + rounds * self.steps * call + self.images * device.decode[self.bucket]


Deck = Sequence[tuple[Any, float]]
"""Values and how often they come; the parts need not sum to 1."""

STEPS: Final[Deck] = ((30, 40), (20, 20), (50, 14), (25, 10), (40, 6), (12, 4), (80, 3), (120, 2), (150, 1))
SAMPLERS: Final[Deck] = (("dpmpp_2m", 65), ("euler_a", 25), ("ddim", 10))
GUIDANCE: Final[Deck] = ((7.5, 90), (1.0, 10))
IMAGES: Final[Deck] = ((1, 72), (2, 10), (4, 15), (8, 3))
SIZES: Final[Deck] = tuple(zip(BUCKETS, (80, 12, 8), strict=True))
PRIORITIES: Final[Deck] = (("normal", 85), ("high", 5), ("low", 10))


@dataclass(frozen=True)
class Mix:
    """The distribution of requests. Each property is drawn independently."""

    sizes: Deck = SIZES
    steps: Deck = STEPS
    samplers: Deck = SAMPLERS
    guidance: Deck = GUIDANCE
    images: Deck = IMAGES
    priorities: Deck = PRIORITIES

    @property
    def decks(self) -> tuple[Deck, ...]:
        return (self.sizes, self.steps, self.samplers, self.guidance, self.images, self.priorities)

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """Every combination, in the order of `draw`."""
        shape = tuple(len(deck) for deck in self.decks)
        values = ([deck[i][0] for deck, i in zip(self.decks, place, strict=True)] for place in np.ndindex(*shape))
        return tuple(_kind(*each) for each in values)

    def draw(self, count: int, chance: np.random.Generator) -> NDArray[np.int64]:
        """Places in `kinds`."""
        drawn = [chance.choice(len(deck), count, p=_shares(deck)) for deck in self.decks]
        return np.ravel_multi_index(drawn, [len(deck) for deck in self.decks])

    def mean_row_seconds(self, device: Device) -> float:
        """What a request of this mix takes of `device` on average, in calls that are as full as it pays."""
        costs, weights = device.costs(), self._weights()
        work = [_work(kind, costs.row_seconds(kind.bucket), device) for kind in self.kinds]
        return float(np.dot(weights, work))

    def mean_images(self) -> float:
        return float(np.dot(self._weights(), [kind.images for kind in self.kinds]))

    def _weights(self) -> NDArray[np.float64]:
        weights = np.ones(1)
        for deck in self.decks:
            weights = np.outer(weights, _shares(deck)).ravel()
        return weights


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their coming: `at` seconds, of kind `kinds[kind]`, from `tenant`.

    `rates` are the requests that were to be expected in each second.
    """

    at: NDArray[np.float64]
    kind: NDArray[np.int64]
    tenant: NDArray[np.int64]
    kinds: tuple[Kind, ...]
    rates: NDArray[np.float64]
    seconds: float

    def __len__(self) -> int:
        return len(self.at)


@dataclass(frozen=True)
class Shape:
    """How the rate goes, as a multiple of its mean over a day: a day's wave, and bursts on top that come at once.

    `swing` is the wave's amplitude (0: none, 1: the nights are empty). Bursts come `bursts_per_day` times at random,
    multiply the rate by up to `burst_factor`, and die away within some `burst_seconds`.
    """

    swing: float = 0.0
    bursts_per_day: float = 0.0
    burst_factor: float = 1.0
    burst_seconds: float = 600.0

    def rates(self, seconds: float, chance: np.random.Generator, day: float = 86_400.0) -> NDArray[np.float64]:
        """The factor in each second."""
        time = np.arange(math.ceil(seconds), dtype=np.float64)
        # From the trough on, so that the morning is seen; two harmonics, since days rise faster than they fall.
        phase = 2 * np.pi * time / day
        rates = 1 - self.swing * (np.cos(phase) - 0.25 * np.sin(2 * phase)) / 1.1
        for begin in chance.uniform(0, seconds, chance.poisson(self.bursts_per_day * seconds / day)):
            height = chance.uniform(0.3, 1.0) * (self.burst_factor - 1)
            rates = rates + np.where(time >= begin, height * np.exp(-(time - begin) / self.burst_seconds), 0.0)
        return np.maximum(rates, 0.0)


@dataclass(frozen=True)
class Phases:
    """One rate after the other: for so many seconds, so many times the mean."""

    phases: tuple[tuple[float, float], ...]

    @property
    def seconds(self) -> float:
        return sum(seconds for seconds, _ in self.phases)

    def rates(self, seconds: float, chance: np.random.Generator, day: float) -> NDArray[np.float64]:
        """The factor in each second. Nothing is left to chance, and every day is the first."""
        parts = [np.full(math.ceil(length), factor) for length, factor in self.phases]
        return np.concatenate(parts)[: math.ceil(seconds)]


class Rates(Protocol):
    """How the rate goes: the factor in each second."""

    def rates(self, seconds: float, chance: np.random.Generator, day: float) -> NDArray[np.float64]: ...


SHAPES: Final[Mapping[str, Shape]] = MappingProxyType(
    {
        "steady": Shape(),
        "day": Shape(swing=0.75),
        "bursts": Shape(bursts_per_day=24, burst_factor=2.5),
        "day and bursts": Shape(swing=0.75, bursts_per_day=12, burst_factor=2.0),
    }
)


def make_trace(
    shape: Rates, mix: Mix, *, rate: float, seconds: float, seed: int, day: float = 86_400.0, start: float = 0.0
) -> Trace:
    """Makes Poisson arrivals, `rate` a second on average over a day, from `start` seconds into the day on."""
    chance = np.random.default_rng(seed)
    rates = rate * shape.rates(start + seconds, chance, day)[math.floor(start) :]
    per_second = chance.poisson(rates)
    at = np.repeat(np.arange(len(rates)), per_second) + chance.random(int(per_second.sum()))
    # Most come from few: the harmonic law of cities, words and tenants.
    shares = 1 / np.arange(1, TENANTS + 1)
    return Trace(
        at=np.sort(at),
        kind=mix.draw(len(at), chance),
        tenant=chance.choice(TENANTS, len(at), p=shares / shares.sum()),
        kinds=mix.kinds,
        rates=rates,
        seconds=seconds,
    )


def _kind(bucket: Bucket, steps: int, sampler: str, guidance: float, images: int, priority: Priority) -> Kind:
    return Kind(
        GenerationParams(
            prompt="a red cup",
            seed=0,
            width=bucket.width,
            height=bucket.height,
            num_images=images,
            guidance_scale=guidance,
            num_inference_steps=steps,
            model_name=bucket.model,
            sampler=sampler,
            priority=priority,
        )
    )


def _work(kind: Kind, row_seconds: float, device: Device) -> float:
    return kind.images * (kind.steps * kind.unet_rows * row_seconds + device.decode[kind.bucket] * device.overlap)


def _shares(deck: Deck) -> NDArray[np.float64]:
    parts = np.array([part for _, part in deck], dtype=np.float64)
    shares: NDArray[np.float64] = parts / parts.sum()
    return shares

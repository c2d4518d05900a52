"""The cases: one fleet under one load each, in series that each answer a question."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from bench.simulation.cluster import Cluster, MakeReplica, Run
from bench.simulation.controller import Controller, ours, ray_default, ray_tuned
from bench.simulation.devices import GPUS, Device
from bench.simulation.outcome import outcome
from bench.simulation.step_replica import StepReplica
from bench.simulation.trace import SHAPES, Mix, Trace, make_trace
from bench.simulation.whole_replica import WholeReplica
from serve_app.config.deployments import AutoscalingConfig

Engine = Literal["steps", "whole"]
Policy = Literal["ours", "ray", "ray, tuned"]

ENGINES: Final[Mapping[Engine, MakeReplica]] = MappingProxyType({"steps": StepReplica, "whole": WholeReplica})

HEADROOM: Final = 4
"""A fleet may grow to so many times its load."""

DAY_S: Final = 86_400.0

POINTS: Final = 500
"""Of a curve in a plot."""


@dataclass(frozen=True)
class Case:
    """A fleet under a load. `gpus` are the load's mean: the work of so many GPUs that are always full.

    `settings` are those of `AutoscalingConfig` that differ from the defaults. `shape` and `seed` alone decide when the
    rate rises and falls, so that fleets of all sizes have the same day.
    """

    gpus: float
    gpu: str = "A100"
    engine: Engine = "steps"
    policy: Policy = "ours"
    shape: str = "day and bursts"
    hours: float = 24.0
    seed: int = 0
    settings: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name among files."""
        own = "".join(f"-{name}={value:g}" for name, value in sorted(self.settings.items()))
        parts = (self.gpu, f"{self.gpus:g}", self.engine, self.policy, self.shape, f"{self.hours:g}h", f"{self.seed}")
        return "-".join(parts).replace(" ", "_").replace(",", "") + own

    @property
    def config(self) -> AutoscalingConfig:
        """The bounds that its size asks for, and its settings."""
        most = math.ceil(HEADROOM * self.gpus) + 1
        return AutoscalingConfig.model_validate({"min_replicas": 1, "max_replicas": most} | dict(self.settings))

    def trace(self) -> Trace:
        device, mix = GPUS[self.gpu], Mix()
        rate = self.gpus / mix.mean_row_seconds(device)
        # Less than a day is cut out around noon.
        start = 0.0 if self.hours >= 24 else DAY_S / 2 - self.hours * 1800
        return make_trace(SHAPES[self.shape], mix, rate=rate, seconds=self.hours * 3600, seed=self.seed, start=start)

    def run(self) -> Run:
        device, trace = GPUS[self.gpu], self.trace()
        # As many as the policy would have by then.
        work = float(trace.rates[0]) * Mix().mean_row_seconds(device)
        first = min(self.config.max_replicas, max(1, math.ceil(work / self.config.target_fill)))
        controller = _controller(self.policy, self.config, device)
        return Cluster(ENGINES[self.engine], device, controller, trace, first=first, seed=self.seed).run()

    def figures(self) -> dict[str, Any]:
        """The case and what came of it, and for plots what was there and what was asked for over time: `samples` as in
        `Run`, `load` in seconds and GPUs' worth of work.
        """
        run, device = self.run(), GPUS[self.gpu]
        every = max(1, len(run.samples) // POINTS)
        work = run.trace.rates * Mix().mean_row_seconds(device)
        seconds = max(1, len(work) // POINTS)
        return {
            "case": asdict(self),
            **outcome(run, device).figures(),
            "samples": [list(sample) for sample in run.samples[::every]],
            "load": [(at, round(float(work[at]), 2)) for at in range(0, len(work), seconds)],
        }


def _controller(policy: Policy, config: AutoscalingConfig, device: Device) -> Controller:
    if policy == "ours":
        return ours(config)
    if policy == "ray":
        return ray_default(config.min_replicas, config.max_replicas)
    capacity = device.costs().knee(device.native) / 2
    return ray_tuned(config, capacity)


def steady() -> Sequence[Case]:
    """Does a load that does not change get a fleet that does not change?"""
    policies: tuple[Policy, ...] = ("ours", "ray, tuned", "ray")
    return [Case(gpus=20, policy=policy, shape="steady", hours=1.0) for policy in policies]


def classes() -> Sequence[Case]:
    """What does step-level batching save, and what does the policy, on each class of GPU? A day each."""
    ways: tuple[tuple[Engine, Policy], ...] = (
        ("steps", "ours"),
        ("whole", "ours"),
        ("steps", "ray"),
        ("steps", "ray, tuned"),
    )
    return [Case(gpus=6, gpu=gpu, engine=engine, policy=policy) for gpu in GPUS for engine, policy in ways]


def fills() -> Sequence[Case]:
    """What does each way to batch cost for the same service? The policy counts work, however well it is done, so at one
    fill both have the same fleet; what batching better is worth shows where fleets are as full as each can be.
    """
    engines: tuple[Engine, ...] = ("steps", "whole")
    wanted = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    return [
        Case(gpus=6, hours=4.0, engine=engine, settings={"target_fill": fill}) for engine in engines for fill in wanted
    ]


def constants() -> Sequence[Case]:
    """Which settings matter? One after the other is turned, from the defaults."""
    turns: Mapping[str, Sequence[float]] = {
        "target_fill": (0.4, 0.5, 0.6, 0.8, 0.9, 1.0),
        "band": (0.02, 0.05, 0.2, 0.3),
        "upscale_delay_s": (1, 15, 30, 60),
        "downscale_delay_s": (30, 60, 120, 600, 1200),
        "look_back_period_s": (5, 30, 60),
        "catch_up_s": (15, 30, 120, 240),
    }
    turned = [{name: value} for name, values in turns.items() for value in values]
    return [Case(gpus=6, hours=4.0, settings=settings) for settings in ({}, *turned)]


def sizes() -> Sequence[Case]:
    """What does size do? An hour around noon with bursts; small fleets live through several, for chance is theirs."""
    ways: tuple[tuple[Engine, Policy], ...] = (("steps", "ours"), ("whole", "ours"), ("steps", "ray, tuned"))
    fleets = {1: 8, 3: 6, 10: 4, 30: 2, 100: 1, 300: 1, 1000: 1}
    return [
        Case(gpus=gpus, engine=engine, policy=policy, shape="bursts", hours=1.0, seed=seed)
        for gpus, seeds in fleets.items()
        for seed in range(seeds)
        for engine, policy in ways
    ]


STUDIES: Final[Mapping[str, Callable[[], Sequence[Case]]]] = MappingProxyType(
    {"steady": steady, "classes": classes, "fills": fills, "constants": constants, "sizes": sizes}
)

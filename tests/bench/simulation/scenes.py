"""A device whose seconds are easy to add up, and requests for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from bench.simulation.cluster import Replica
from bench.simulation.devices import Device
from bench.simulation.job import Clock, Job
from bench.simulation.trace import Kind
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Bucket, Request

SMALL = Bucket("sd15", 512, 512)
LARGE = Bucket("sd15", 768, 768)

STEP = 1.0
DECODE = 0.5
PREPARE = 0.25


def device(
    seconds: Mapping[int, float] = MappingProxyType(dict.fromkeys((1, 2, 4, 8), STEP)), **changes: Any
) -> Device:
    """Calls take so long by their rows; by default a second, however many there are."""
    easy: dict[str, Any] = {
        "name": "easy",
        "calls": {SMALL: seconds, LARGE: {rows: 2 * each for rows, each in seconds.items()}},
        "decode": {SMALL: DECODE, LARGE: DECODE},
        "prepare": PREPARE,
        "overlap": 0.0,
        "provision": 100.0,
        "cold_start": 20.0,
        "price": 3.6,
        "source": "made up",
        "native": SMALL,
        "largest": max(seconds),
    }
    return Device(**(easy | changes))


def kind(steps: int = 10, bucket: Bucket = SMALL, **asked: Any) -> Kind:
    """Guided, of one image, with a sampler that evaluates the network once a step."""
    params = {
        "prompt": "a red cup",
        "seed": 0,
        "width": bucket.width,
        "height": bucket.height,
        "model_name": bucket.model,
        "num_inference_steps": steps,
        "guidance_scale": 7.5,
        "sampler": "ddim",
    }
    return Kind(GenerationParams.model_validate(params | asked))


@dataclass
class Stage:
    """One replica, alone: jobs come when they are due, and it is told when what it waits for has come."""

    replica: Replica
    clock: Clock
    ends: dict[int, float] = field(default_factory=dict)

    def play(self, arrivals: Sequence[tuple[float, Kind]], cost: float = 1.0) -> list[float]:
        """When each has ended, in seconds of the clock."""
        coming = [(at, number, kind) for number, (at, kind) in enumerate(arrivals)]
        while coming or self.replica.next_at < float("inf"):
            if coming and coming[0][0] < self.replica.next_at:
                self.clock.now, number, asked = coming.pop(0)
                request = Request(str(number), asked.params)
                self.replica.arrive(Job(number, asked, request, self.clock.now, cost))
            else:
                self.clock.now = self.replica.next_at
                self.replica.advance()
        return [self.ends[number] for number in range(len(arrivals))]


def stage(make: Any, on: Device, queue_limit: int = 128, **options: Any) -> Stage:
    clock, ends = Clock(), dict[int, float]()

    def finish(job: Job, at: float) -> None:
        ends[job.number] = at

    return Stage(make(on, on.costs(), clock, finish, queue_limit, **options), clock, ends)

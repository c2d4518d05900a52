"""Runs the same trace on a real local Ray Serve, and records each request's time and the number of replicas.

The simulator's device is calibrated on the same server from what callers see: how much longer requests with more steps
and more images take, alone and beside a busy neighbour, and how long a replica needs to start.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import httpx
import numpy as np

from bench.server import RunningServer
from bench.simulation.devices import Device
from bench.simulation.trace import Kind, Mix, Trace
from deployments.engine.padding import powers_of_two
from deployments.engine.protocol.request import Bucket
from serve_app.client import BASE

NATIVE: Final = Bucket("demo-sd", 256, 256)
ROWS: Final = 4
IMAGES: Final = (1, 2)
STEPS: Final = 24
CROWD: Final = 12
BUSY_S: Final = 45.0
REPEATS: Final = 15
SETTLES_S: Final = 30.0
COMES_WITHIN_S: Final = 120.0
GOES_WITHIN_S: Final = 180.0

MIX: Final = Mix(
    sizes=((NATIVE, 1),),
    steps=((8, 40), (12, 20), (16, 20), (24, 15), (48, 5)),
    samplers=(("dpmpp_2m", 65), ("euler_a", 25), ("ddim", 10)),
    images=((1, 75), (2, 25)),
    priorities=(("normal", 90), ("high", 5), ("low", 5)),
)
"""As the mix of the fleets, but of what a CPU makes several hundred of in ten minutes: the 95th percentile of fewer is
as much chance as anything, in reality and in the simulator.
"""


@dataclass
class Observed:
    """Latencies in seconds by request, of those that were answered; `samples` are seconds and replicas that run."""

    latencies: dict[int, float] = field(default_factory=dict)
    samples: list[tuple[float, int]] = field(default_factory=list)
    failed: int = 0


class Reality:
    """A server under test, and its callers."""

    def __init__(self, server: RunningServer, http: httpx.AsyncClient) -> None:
        self._server = server
        self._http = http
        self._seed = 0

    async def device(self) -> Device:
        """Measures what lone requests take of a single replica, once everything has come to rest after the start."""
        settled_at = time.perf_counter() + SETTLES_S
        while time.perf_counter() < settled_at:
            for images in IMAGES:
                await self._lone(lone_kind(images, STEPS, 7.5))
        lines = {images: await self._line(images) for images in IMAGES}
        unguided = await self._line(1, guidance=1.0)
        rests = np.array([(images, rest) for images, (_, rest) in lines.items()])
        decode, fixed = np.polyfit(rests[:, 0], rests[:, 1], 1)
        calls = {1: unguided[0]} | {2 * images: step for images, (step, _) in lines.items()}
        return Device(
            name="demo",
            calls={NATIVE: {rows: calls[rows] for rows in powers_of_two(ROWS)}},
            decode={NATIVE: float(decode)},
            prepare=0.0,
            # Its own thread, on a core of its own as long as one replica works.
            overlap=0.0,
            provision=0.0,
            cold_start=0.0,
            price=0.0,
            source="measured in the same run",
            http_seconds=float(fixed),
            native=NATIVE,
            largest=ROWS,
        )

    async def slower(self, device: Device) -> float:
        """Measures by how much busy replicas, with HTTP and clients, slow their calls; see `Host`."""
        before = await self._server.statistics(self._http)
        until = time.perf_counter() + BUSY_S
        chance = np.random.default_rng(0)
        kinds = [MIX.kinds[index] for index in MIX.draw(1000, chance)]
        await self._crowd(lambda: time.perf_counter() > until, kinds)
        after = await self._server.statistics(self._http)
        return _called(before, after) / _alone(before, after, device)

    async def cold_start(self) -> float:
        """Measures the seconds until a second replica is ready, under a load that needs it. Afterwards there is one.

        Raises TimeoutError where replicas do not come or go.
        """
        await self._replicas_are(1, GOES_WITHIN_S)
        enough = asyncio.Event()
        crowd = asyncio.create_task(self._crowd(enough.is_set, [lone_kind(1, STEPS, 7.5)]))
        try:
            begun = await self._since("STARTING")
            took = await self._replicas_are(2, COMES_WITHIN_S) - begun
        finally:
            enough.set()
            await crowd
        await self._replicas_are(1, GOES_WITHIN_S)
        return took

    async def play(self, trace: Trace) -> Observed:
        """Sends the trace, open loop. Latency counts from when a request was due."""
        seen = Observed()
        begun = time.perf_counter()
        watching = asyncio.create_task(self._watch(seen, begun))
        async with asyncio.TaskGroup() as group:
            for number, (at, kind) in enumerate(zip(trace.at.tolist(), trace.kind.tolist(), strict=True)):
                await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
                group.create_task(self._timed(seen, number, trace.kinds[kind], begun + at))
        await asyncio.sleep(max(0.0, begun + trace.seconds - time.perf_counter()))
        watching.cancel()
        return seen

    async def _timed(self, seen: Observed, number: int, kind: Kind, due: float) -> None:
        if await self._ask(kind):
            seen.latencies[number] = time.perf_counter() - due
        else:
            seen.failed += 1

    async def _watch(self, seen: Observed, begun: float) -> None:
        while True:
            states = await self._server.command("replicas")
            seen.samples.append((time.perf_counter() - begun, states.get("RUNNING", 0)))
            await asyncio.sleep(0.5)

    async def _ask(self, kind: Kind) -> bool:
        self._seed += 1
        params = kind.params
        body: dict[str, Any] = {
            "prompt": params.prompt,
            "seed": self._seed,
            "width": params.width,
            "height": params.height,
            "num_images": params.num_images,
            "guidance_scale": params.guidance_scale,
            "num_inference_steps": params.num_inference_steps,
            "sampler": params.sampler,
            "priority": params.priority,
        }
        return (await self._http.post(f"{BASE}/text-to-image", json=body)).is_success

    async def _line(self, images: int, guidance: float = 7.5) -> tuple[float, float]:
        """Seconds of a UNet call, as the engine has counted them, and of all the rest of a lone request."""
        kind = lone_kind(images, STEPS, guidance)
        before = await self._server.statistics(self._http)
        took = median([await self._lone(kind) for _ in range(REPEATS)])
        after = await self._server.statistics(self._http)
        call = _called(before, after) / (after["total"]["unet_calls"] - before["total"]["unet_calls"])
        return call, took - kind.steps * call

    async def _crowd(self, enough: Callable[[], bool], kinds: Sequence[Kind]) -> None:
        """Runs callers who send one request after the other until it is enough."""
        coming = itertools.cycle(kinds)

        async def caller() -> None:
            while not enough():
                await self._lone(next(coming))

        async with asyncio.TaskGroup() as group:
            for _ in range(CROWD):
                group.create_task(caller())

    async def _lone(self, kind: Kind) -> float:
        begun = time.perf_counter()
        if not await self._ask(kind):
            raise RuntimeError("a request of the calibration failed")
        return time.perf_counter() - begun

    async def _since(self, state: str) -> float:
        async with asyncio.timeout(COMES_WITHIN_S):
            while not (await self._server.command("replicas")).get(state):
                await asyncio.sleep(0.1)
        return time.perf_counter()

    async def _replicas_are(self, count: int, within_s: float) -> float:
        """Waits until that many run, and no others start or stop."""
        async with asyncio.timeout(within_s):
            while await self._server.command("replicas") != {"RUNNING": count}:
                await asyncio.sleep(0.1)
        return time.perf_counter()


def _called(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """Seconds of UNet calls between two looks at the statistics."""
    return float(after["total"]["denoise_seconds"] - before["total"]["denoise_seconds"])


def _alone(before: Mapping[str, Any], after: Mapping[str, Any], device: Device) -> float:
    """What the same calls would have taken one replica alone."""
    then, now = before["total"]["batch_sizes"], after["total"]["batch_sizes"]
    padded = device.padded_calls[NATIVE]
    return float(sum((count - then.get(rows, 0)) * padded[int(rows)] for rows, count in now.items()))


def lone_kind(images: int, steps: int, guidance: float) -> Kind:
    """Returns the one kind of a mix that has only one."""
    mix = Mix(
        sizes=((NATIVE, 1),),
        steps=((steps, 1),),
        samplers=(("dpmpp_2m", 1),),
        guidance=((guidance, 1),),
        images=((images, 1),),
        priorities=(("normal", 1),),
    )
    return mix.kinds[0]


def mean_replicas(samples: Sequence[tuple[float, int]], seconds: float) -> float:
    """Over that time; each sample holds until the next."""
    ends = [at for at, _ in samples[1:]] + [seconds]
    held = [max(0.0, min(end, seconds) - min(at, seconds)) for (at, _), end in zip(samples, ends, strict=True)]
    return sum(count * time for (_, count), time in zip(samples, held, strict=True)) / sum(held)

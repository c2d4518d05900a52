"""Compares the simulator with reality: the same trace in the simulator and on a real local Ray Serve."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
import numpy as np

from bench.server import run_server
from bench.simulation.cluster import Cluster, Run
from bench.simulation.controller import ours
from bench.simulation.devices import Device
from bench.simulation.reality import MIX, NATIVE, ROWS, Observed, Reality, mean_replicas
from bench.simulation.step_replica import Host, StepReplica
from bench.simulation.trace import Phases, Trace, make_trace
from serve_app.config.deployments import AutoscalingConfig
from serve_app.config.server import AppConfig

WITHIN: Final = 0.15
"""Figures of the simulator may be off by so much of the real ones."""

PLAYED: Final = 9
"""Routing and start-up have their chances: the simulator's figures are medians of so many runs."""

SCALING: Final = AutoscalingConfig(min_replicas=1, max_replicas=2, downscale_delay_s=40)
"""Production's settings, but for the patience of days."""

LOAD: Final = Phases(((60, 0.4), (120, 1.0), (120, 0.35), (120, 1.0), (120, 0.3)))
"""In shares of the peak, which fills two replicas beside one another as far as the policy wants them filled. A peak
that all but overloads them would make a small error of a call's length a large one of the queue's, on either side.
"""


def config_of(**replicas: Any) -> AppConfig:
    """Configures the demo model with one thread per replica. `replicas` says how many there are."""
    deployment = {
        "name": "demo",
        "models": ["demo-sd"],
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "num_cpus": 0.1,
        "max_rows": ROWS,
        "graceful_shutdown_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 0.2,
    }
    ingress = {"graceful_shutdown_timeout_s": 31, "graceful_shutdown_wait_loop_s": 0.2, "request_timeout_s": 300}
    return AppConfig.model_validate(
        {
            "models": [{"name": "demo-sd", "controlnets": {}}],
            "deployments": [deployment | replicas],
            "ingress": ingress,
            "cache": {"enabled": False},
        }
    )


@dataclass(frozen=True)
class Calibrated:
    """What was measured. `slower` is what one busy replica, and two of them, make of a UNet call; see `Host`."""

    device: Device
    slower: tuple[float, float]


@dataclass(frozen=True)
class Sides:
    """One figure, real and simulated."""

    name: str
    real: float
    simulated: float

    @property
    def off(self) -> float:
        """The difference, as a share of the real figure."""
        return self.simulated / self.real - 1

    @property
    def agrees(self) -> bool:
        return abs(self.off) <= WITHIN


async def validate(logs: Path, seed: int = 1) -> dict[str, Any]:
    """Makes the whole report, in a quarter of an hour."""
    async with _reality(logs / "one.log", replicas=1) as reality:
        device = await reality.device()
        one = await reality.slower(device)
    async with _reality(logs / "two.log", replicas=2) as reality:
        two = await reality.slower(device)
    async with _reality(logs / "elastic.log", autoscaling=SCALING.model_dump()) as reality:
        calibrated = Calibrated(replace(device, cold_start=await reality.cold_start()), (one, two))
        trace = trace_for(calibrated, seed)
        observed = await reality.play(trace)
    runs = [simulate(trace, calibrated, chance) for chance in range(PLAYED)]
    sides = compare(observed, runs)
    return {
        "figures": {side.name: vars(side) | {"off": side.off, "agrees": side.agrees} for side in sides},
        "requests": len(trace),
        "failed": observed.failed,
        "calibrated": calibrated_figures(calibrated),
        "latencies": {
            "real": sorted(round(value, 3) for value in observed.latencies.values()),
            "simulated": sorted(round(value, 3) for value in runs[0].latencies),
        },
        "replicas": {
            "real": [(round(at, 1), count) for at, count in observed.samples],
            "simulated": [(at, running) for at, running, _ in runs[0].samples],
        },
    }


@asynccontextmanager
async def _reality(log: Path, **replicas: Any) -> AsyncIterator[Reality]:
    with run_server(config_of(**replicas), log) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=None, trust_env=False) as http:
            yield Reality(server, http)


def trace_for(calibrated: Calibrated, seed: int) -> Trace:
    """Makes the trace of LOAD for the calibrated device."""
    peak = 2 * SCALING.target_fill / calibrated.slower[1]
    rate = peak / MIX.mean_row_seconds(calibrated.device)
    trace = make_trace(LOAD, MIX, rate=rate, seconds=LOAD.seconds, seed=seed)
    # Without keys all callers are one tenant.
    return replace(trace, tenant=np.zeros_like(trace.tenant))


def simulate(trace: Trace, calibrated: Calibrated, seed: int) -> Run:
    """Simulates the trace; both replicas share one machine."""
    make = partial(StepReplica, host=Host(calibrated.slower))
    return Cluster(make, calibrated.device, ours(SCALING), trace, first=1, seed=seed).run()


def compare(observed: Observed, runs: Sequence[Run]) -> list[Sides]:
    """Compares median, p95 and replicas."""
    real = list(observed.latencies.values())
    seconds = runs[0].trace.seconds
    samples = [[(at, running) for at, running, _ in run.samples] for run in runs]
    return [
        *(
            Sides(
                name,
                float(np.percentile(real, percent)),
                median(float(np.percentile(run.latencies, percent)) for run in runs),
            )
            for name, percent in (("median latency, s", 50), ("p95 latency, s", 95))
        ),
        Sides(
            "replicas, mean",
            mean_replicas(observed.samples, seconds),
            median(mean_replicas(each, seconds) for each in samples),
        ),
    ]


def calibrated_figures(calibrated: Calibrated) -> dict[str, Any]:
    """For the report. Seconds."""
    device = calibrated.device
    return {
        "call_s": {rows: round(seconds, 4) for rows, seconds in device.calls[NATIVE].items()},
        "knee": device.costs().knee(NATIVE),
        "decode_s": round(device.decode[NATIVE], 4),
        "rest_s": round(device.http_seconds, 4),
        "cold_start_s": round(device.cold_start, 1),
        "slower_where_one_and_two_are_busy": [round(slower, 3) for slower in calibrated.slower],
    }

"""Sums up a run: the share served in time, the cost, and the waste."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.simulation.cluster import Run
from bench.simulation.devices import Device
from bench.simulation.trace import PATIENCE


@dataclass(frozen=True)
class Outcome:
    """Latencies in seconds, over all requests that were answered; shares from 0 to 1.

    `attainment` is the share of all requests that were answered within PATIENCE times what they take alone. Of the
    device time that was paid for, `starting` went by before replicas were ready, in `idle` nothing was to do, and
    `padding` was worked for nobody.
    """

    requests: int
    images: int
    attainment: float
    refused: float
    p50: float
    p95: float
    p99: float
    gpus: float
    most_gpus: int
    starts: int
    starting: float
    idle: float
    padding: float
    cost_per_1000: float
    """US dollars for a thousand images."""

    @property
    def wasted(self) -> float:
        """The share of the paid time that served no request."""
        return self.starting + self.idle + self.padding

    def figures(self) -> dict[str, Any]:
        """The figures for a report."""
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()}
        return rounded | {"wasted": round(self.wasted, 4)}


def outcome(run: Run, device: Device) -> Outcome:
    """Sums up a run on that class of device. Raises ValueError if nothing was answered."""
    latencies = np.frombuffer(run.latencies)
    answered = latencies >= 0
    if not answered.any():
        raise ValueError("nothing was answered")
    limits = np.array([PATIENCE * (kind.alone(device) + device.http_seconds) for kind in run.trace.kinds])
    images = np.array([kind.images for kind in run.trace.kinds])[run.trace.kind]
    p50, p95, p99 = np.percentile(latencies[answered], [50, 95, 99])
    return Outcome(
        requests=len(latencies),
        images=int(images[answered].sum()),
        attainment=float((answered & (latencies <= limits[run.trace.kind])).mean()),
        refused=float(1 - answered.mean()),
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        gpus=run.paid / run.seconds,
        most_gpus=max(running for _, running, _ in run.samples),
        starts=run.starts,
        starting=run.starting / run.paid,
        idle=run.idle / run.paid,
        padding=run.padding / run.paid,
        cost_per_1000=run.paid / 3600 * device.price / int(images[answered].sum()) * 1000,
    )

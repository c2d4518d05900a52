"""Decides how many replicas the work needs: running and waiting work, in devices that are always full.

Work is counted in seconds of a device whose UNet calls are at the knee, which does not depend on how many replicas
share it. Counts of running images or open requests do depend on it: on many replicas each is alone and soon done, on
few it shares calls and stays; a policy that counts them oscillates (docs/scaling.md).

Ray pickles this module by value into its controller and calls the policy about ten times a second: standard library
only, no I/O. Serve applies the delays; the band here keeps a load that hovers at a boundary from flapping.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol


class ScalingContext(Protocol):
    """The part of `ray.serve.config.AutoscalingContext` that the policy reads.

    `aggregated_metrics` holds what `ModelReplica.record_autoscaling_stats` returned, by metric, then by replica.
    """

    total_queued_requests: float
    target_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...


class WorkPolicy:
    """Aims at replicas that are `target_fill` full; removes replicas only once the rest would be `band` below that.

    Waiting work is to be done within `catch_up_s`, beside what arrives. A shorter time asks for more replicas in a
    burst, of which late ones find nothing left to do.
    """

    def __init__(self, target_fill: float = 0.7, band: float = 0.1, catch_up_s: float = 60.0) -> None:
        if not 0.0 < band < target_fill <= 1.0:
            raise ValueError(f"0 < band < target_fill <= 1 must hold, got band {band}, target_fill {target_fill}")
        if catch_up_s <= 0:
            raise ValueError(f"catch_up_s must be positive, got {catch_up_s}")
        self.target_fill = target_fill
        self.band = band
        self.catch_up_s = catch_up_s

    def __call__(self, ctx: ScalingContext) -> tuple[int, dict[str, Any]]:
        metrics = ctx.aggregated_metrics or {}
        load = _sum(metrics, "work") + _sum(metrics, "backlog") / self.catch_up_s
        target = self._target_replicas(load, ctx.target_num_replicas)
        if ctx.total_queued_requests:
            # No replica has taken them, so their cost is not known yet.
            target = max(1, target, ctx.target_num_replicas)
        return max(ctx.capacity_adjusted_min_replicas, min(ctx.capacity_adjusted_max_replicas, target)), {}

    def _target_replicas(self, load: float, current: int) -> int:
        more = math.ceil(load / self.target_fill)
        fewer = math.ceil(load / (self.target_fill - self.band))
        return more if more > current else min(current, fewer)


def _sum(metrics: Mapping[str, Mapping[Any, float]], name: str) -> float:
    return sum(metrics.get(name, {}).values())

"""How many replicas the work needs: waiting and running images over what a replica takes at once.

Ray pickles this module by value into its controller and calls the policy about ten times a second: standard library
only, no I/O. Serve applies the delays; the band here keeps a load that hovers at a boundary from flapping.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol


class ScalingContext(Protocol):
    """The part of `ray.serve.config.AutoscalingContext` that the policy reads.

    `aggregated_metrics` is what `ModelReplica.record_autoscaling_stats` said, by metric, then by replica.
    """

    total_queued_requests: float
    target_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int

    @property
    def policy_state(self) -> Mapping[str, Any]: ...

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...


class WorkPolicy:
    """Aims at replicas that are `target_fill` full; lets replicas go only once the rest would be below `band` less.

    Work is what waits in handles (requests), in engines' queues and in their trays (images). Capacity is measured: it
    is what the replicas themselves report, and it is remembered for the moments when none does.
    """

    def __init__(self, target_fill: float = 0.8, band: float = 0.2) -> None:
        if not 0.0 < band < target_fill <= 1.0:
            raise ValueError(f"0 < band < target_fill <= 1 must hold, got band {band}, target_fill {target_fill}")
        self.target_fill = target_fill
        self.band = band

    def __call__(self, ctx: ScalingContext) -> tuple[int, dict[str, Any]]:
        metrics = ctx.aggregated_metrics or {}
        capacity = self._capacity(metrics.get("capacity", {}), ctx.policy_state)
        work = self._work(metrics) + (ctx.total_queued_requests or 0.0)
        wanted = self._wanted(work / capacity, ctx.target_num_replicas)
        bounded = max(ctx.capacity_adjusted_min_replicas, min(ctx.capacity_adjusted_max_replicas, wanted))
        return bounded, {"capacity": capacity}

    def _capacity(self, reported: Mapping[Any, float], state: Mapping[str, Any]) -> float:
        if reported:
            return max(1.0, sum(reported.values()) / len(reported))
        return max(1.0, float((state or {}).get("capacity", 1.0)))

    def _work(self, metrics: Mapping[str, Mapping[Any, float]]) -> float:
        return sum(sum(metrics.get(name, {}).values()) for name in ("waiting", "running"))

    def _wanted(self, load: float, current: int) -> int:
        more = math.ceil(load / self.target_fill)
        fewer = math.ceil(load / (self.target_fill - self.band))
        return more if more > current else min(current, fewer)

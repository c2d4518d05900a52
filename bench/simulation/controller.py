"""Autoscales as Ray Serve's controller does: measured series, means over a window, a policy, delays, bounds.

The context, the policies, scaling factors and delays are Ray's own functions; what is simulated is the clock.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import (
    _apply_delay_logic,
    _apply_scaling_factors,
    _get_cold_start_scale_up_replicas,
    replica_queue_length_autoscaling_policy,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from deployments.autoscaling import WorkPolicy
from deployments.throughput import RateMeter
from serve_app.config.deployments import AutoscalingConfig as OurConfig

DEPLOYMENT = DeploymentID(name="sd15", app_name="darkroom")

Policy = Callable[[AutoscalingContext], tuple[int | float, dict[str, Any]]]


class Measured(Protocol):
    """What a replica reports."""

    @property
    def ongoing(self) -> int: ...
    @property
    def worked(self) -> float: ...
    @property
    def backlog(self) -> float: ...


class Series:
    """What one replica has reported lately. Samples are taken at equal intervals, so all weigh the same in the mean."""

    def __init__(self, length: int, clock: Callable[[], float]) -> None:
        self._samples: deque[tuple[float, float, float]] = deque(maxlen=length)
        self._work_rate = RateMeter(clock)

    def add(self, replica: Measured) -> None:
        self._samples.append((self._work_rate.update(replica.worked), replica.backlog, replica.ongoing))

    def means(self) -> tuple[float, float, float]:
        """Work, backlog, requests."""
        count = len(self._samples)
        work, backlog, ongoing = zip(*self._samples, strict=True)
        return sum(work) / count, sum(backlog) / count, sum(ongoing) / count


class Controller:
    """Decides how many replicas there shall be, once every interval of the metrics."""

    def __init__(self, policy: Policy, config: AutoscalingConfig) -> None:
        self.config = config
        self._policy = policy
        self._state: dict[str, Any] = {}
        self._series: dict[int, Series] = {}
        self._now = 0.0
        self.interval: float = config.metrics_interval_s
        self._length = max(1, round(config.look_back_period_s / self.interval))

    def decide(self, now: float, replicas: Mapping[int, Measured], unrouted: int, target: int) -> int:
        """Returns the new target. `replicas` are those that run, `unrouted` the requests that wait for a first one."""
        self._now = now
        self._series = {key: self._series.get(key) or Series(self._length, lambda: self._now) for key in replicas}
        for key, replica in replicas.items():
            self._series[key].add(replica)
        context = self._context(now, replicas, unrouted, target)
        woken: int | None = _get_cold_start_scale_up_replicas(context)
        wanted = self._with_delays(context, now) if woken is None else woken
        return int(max(self.config.min_replicas, min(self.config.max_replicas, wanted)))

    def _with_delays(self, context: AutoscalingContext, now: float) -> int:
        """As Ray's `_apply_autoscaling_config` does it, which takes no clock."""
        before = dict(self._state)
        wanted, state = self._policy(context)
        scaled: int = _apply_scaling_factors(wanted, context.current_num_replicas, self.config)
        if context.current_num_replicas == 0 and scaled > 0:
            self._state = before | state
            return scaled
        final, delays = _apply_delay_logic(max(0, scaled), context.target_num_replicas, self.config, before, now)
        self._state = delays | state
        return int(final)

    def _context(self, now: float, replicas: Mapping[int, Measured], unrouted: int, target: int) -> AutoscalingContext:
        means = {key: series.means() for key, series in self._series.items()}
        return AutoscalingContext(
            deployment_id=DEPLOYMENT,
            deployment_name=DEPLOYMENT.name,
            app_name=DEPLOYMENT.app_name,
            current_num_replicas=len(replicas),
            target_num_replicas=target,
            running_replicas=list(replicas),
            total_num_requests=sum(mean[2] for mean in means.values()) + unrouted,
            total_queued_requests=float(unrouted),
            aggregated_metrics={
                "work": {key: mean[0] for key, mean in means.items()},
                "backlog": {key: mean[1] for key, mean in means.items()},
            },
            raw_metrics=None,
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=self.config,
        )


def ours(config: OurConfig) -> Controller:
    """Returns production's own policy with production's own settings."""
    options = config.serve_options()
    policy = options.pop("policy")["policy_kwargs"]
    return Controller(WorkPolicy(**policy), AutoscalingConfig(**options))


def ray_default(least: int, most: int) -> Controller:
    """Returns Ray's policy with Ray's settings: 2 ongoing requests a replica, half a minute up, ten minutes down."""
    return Controller(replica_queue_length_autoscaling_policy, AutoscalingConfig(min_replicas=least, max_replicas=most))


def ray_tuned(config: OurConfig, capacity: float) -> Controller:
    """Returns Ray's policy with our delays and our target for full replicas; `capacity` is what one takes at once."""
    options = config.serve_options()
    del options["policy"]
    target = config.target_fill * capacity
    return Controller(
        replica_queue_length_autoscaling_policy, AutoscalingConfig(target_ongoing_requests=target, **options)
    )


def fixed(count: int) -> Controller:
    """Always wants the same number."""
    config = AutoscalingConfig(min_replicas=count, max_replicas=count, metrics_interval_s=60, look_back_period_s=61)
    return Controller(lambda context: (count, {}), config)

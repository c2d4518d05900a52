"""Replicas come after Serve's delays, go after Serve's delays, and number what the policy says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingContext

from bench.simulation.controller import Controller, ours, ray_default, ray_tuned
from deployments.autoscaling import WorkPolicy
from serve_app.config.deployments import AutoscalingConfig

CONFIG = AutoscalingConfig(
    min_replicas=1,
    max_replicas=10,
    target_fill=0.8,
    band=0.2,
    catch_up_s=60,
    upscale_delay_s=6,
    downscale_delay_s=20,
    look_back_period_s=2,
    metrics_interval_s=2,
)


@dataclass
class Busy:
    backlog: float = 0.0
    ongoing: int = 0
    worked: float = 0.0


IDLE: Mapping[int, Busy] = {0: Busy()}
CROWDED: Mapping[int, Busy] = {0: Busy(backlog=210.0, ongoing=16)}


def wanted(
    controller: Controller, replicas: Mapping[int, Busy], seconds: float, target: int, since: float
) -> list[int]:
    """The targets of each interval."""
    out: list[int] = []
    for tick in range(int(seconds / controller.interval)):
        target = controller.decide(since + tick * controller.interval, replicas, 0, target)
        out.append(target)
    return out


def test_more_come_when_the_delay_has_passed() -> None:
    # Three and a half replicas for a minute, each 0.8 full.
    assert wanted(ours(CONFIG), CROWDED, 12, target=1, since=0.0) == [1, 1, 1, 5, 5, 5]


def test_fewer_stay_when_their_delay_has_passed() -> None:
    replicas = {number: Busy() for number in range(5)}
    seen = wanted(ours(CONFIG), replicas, 30, target=5, since=0.0)
    assert seen[:10] == [5] * 10
    assert seen[-1] == 1


def test_a_load_that_goes_in_time_leaves_everything_as_it_was() -> None:
    controller = ours(CONFIG)
    assert wanted(controller, CROWDED, 4, target=1, since=0.0) == [1, 1]
    assert wanted(controller, IDLE, 4, target=1, since=4.0) == [1, 1]
    assert wanted(controller, CROWDED, 4, target=1, since=8.0) == [1, 1]


def test_bounds_hold() -> None:
    flooded = {0: Busy(backlog=1e6, ongoing=1004)}
    assert wanted(ours(CONFIG), flooded, 20, target=1, since=0.0)[-1] == 10


def test_a_deployment_that_sleeps_wakes_at_once() -> None:
    controller = ours(CONFIG.model_copy(update={"min_replicas": 0}))
    assert controller.decide(0.0, {}, 3, 0) >= 1


def test_the_look_back_smooths() -> None:
    controller = ours(CONFIG.model_copy(update={"look_back_period_s": 20.0, "upscale_delay_s": 0.0}))
    wanted(controller, IDLE, 18, target=1, since=0.0)
    # One sample among ten: a third of a replica.
    assert controller.decide(18.0, CROWDED, 0, 1) == 1


def test_work_that_is_being_done_counts_at_its_pace() -> None:
    controller = ours(CONFIG)
    target = 2
    for tick in range(10):
        replicas = {key: Busy(worked=0.9 * tick * controller.interval) for key in range(2)}
        target = controller.decide(tick * controller.interval, replicas, 0, target)
    # 1.8 replicas' worth, 0.8 full.
    assert target == 3


@pytest.mark.parametrize("make", [lambda: ray_default(1, 10), lambda: ray_tuned(CONFIG, 4.0)])
def test_rays_policy_counts_requests(make: Callable[[], Controller]) -> None:
    few = {0: Busy(backlog=1e6, ongoing=2)}
    assert wanted(make(), few, 120, target=1, since=0.0)[-1] == 1
    many = {0: Busy(ongoing=16)}
    assert wanted(make(), many, 120, target=1, since=0.0)[-1] > 1


def test_delays_are_those_of_rays_own_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's function reads the clock of its module; it is set here to the simulation's."""
    import ray.serve.autoscaling_policy as module

    now = 0.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    controller = ours(CONFIG)
    policy = _apply_autoscaling_config(WorkPolicy(CONFIG.target_fill, CONFIG.band, CONFIG.catch_up_s))
    state: dict[str, object] = {}
    target = theirs = 1
    contexts: list[AutoscalingContext] = []
    made = controller._context

    def seen(*given: Any) -> AutoscalingContext:
        contexts.append(made(*given))
        return contexts[-1]

    monkeypatch.setattr(controller, "_context", seen)
    loads = [CROWDED] * 5 + [IDLE] * 2 + [CROWDED] * 6 + [IDLE] * 14
    for tick, replicas in enumerate(loads):
        now = tick * controller.interval
        target = controller.decide(now, replicas, 0, target)
        context = contexts[-1]
        context.policy_state = state
        context.target_num_replicas = theirs
        decided, state = policy(context)
        theirs = int(decided)
        assert target == theirs, f"at {now} s"
    assert target == 1

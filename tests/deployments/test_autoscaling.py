"""The autoscaling policy as a plain function."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle

from deployments import autoscaling
from deployments.autoscaling import WorkPolicy

POLICY = WorkPolicy(target_fill=0.8, band=0.2, catch_up_s=60.0)


@dataclass
class FakeContext:
    work: list[float] = field(default_factory=lambda: [0.0])
    backlog: list[float] = field(default_factory=lambda: [0.0])
    total_queued_requests: float = 0.0
    target_num_replicas: int = 1
    capacity_adjusted_min_replicas: int = 1
    capacity_adjusted_max_replicas: int = 10

    @property
    def aggregated_metrics(self) -> dict[str, dict[Any, float]]:
        named = {"work": self.work, "backlog": self.backlog}
        return {name: dict(enumerate(values)) for name, values in named.items() if values}


def decide(context: FakeContext, policy: WorkPolicy = POLICY) -> int:
    return policy(context)[0]


def test_an_idle_deployment_shrinks_to_its_minimum() -> None:
    assert decide(FakeContext(target_num_replicas=5, work=[0.0] * 5)) == 1


def test_replicas_are_asked_for_in_proportion_to_the_work() -> None:
    assert decide(FakeContext(work=[0.9, 0.9, 0.8], target_num_replicas=3)) == 4
    assert decide(FakeContext(work=[0.9] * 8, target_num_replicas=8)) == 9


def test_what_waits_is_to_be_done_within_its_time() -> None:
    # A full replica, and two minutes of work before it: two more for a minute.
    assert decide(FakeContext(work=[1.0], backlog=[120.0])) == 4
    assert decide(FakeContext(work=[1.0], backlog=[120.0]), WorkPolicy(0.8, 0.2, catch_up_s=120.0)) == 3


def test_the_answer_does_not_depend_on_how_many_replicas_share_the_work() -> None:
    """What images that run, or requests under way, would not say: fewer of them are there where more replicas are."""
    wanted = {
        decide(FakeContext(work=[3.0 / count] * count, target_num_replicas=count), WorkPolicy(0.8, 0.001))
        for count in range(3, 11)
    }
    assert wanted == {4}


def test_replicas_stay_while_requests_wait_that_none_has_taken() -> None:
    assert decide(FakeContext(total_queued_requests=3.0, target_num_replicas=4)) == 4
    sleeping = FakeContext(work=[], backlog=[], target_num_replicas=0, capacity_adjusted_min_replicas=0)
    assert decide(sleeping) == 0
    sleeping.total_queued_requests = 1.0
    assert decide(sleeping) == 1


def test_a_load_at_the_boundary_does_not_flap() -> None:
    """Just above 80 % of one replica asks for two; falling just below it again keeps both."""
    assert decide(FakeContext(work=[0.81])) == 2
    assert decide(FakeContext(work=[0.4, 0.39], target_num_replicas=2)) == 2
    assert decide(FakeContext(work=[0.3, 0.3], target_num_replicas=2)) == 1


def test_bounds_hold() -> None:
    assert decide(FakeContext(backlog=[10_000.0])) == 10
    assert decide(FakeContext(target_num_replicas=3, capacity_adjusted_min_replicas=3)) == 3


def test_nonsense_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="band"):
        WorkPolicy(target_fill=0.5, band=0.5)
    with pytest.raises(ValueError, match="catch_up_s"):
        WorkPolicy(catch_up_s=0.0)


@given(work=st.floats(0, 1e6), current=st.integers(1, 10), fill=st.floats(0.5, 1.0))
def test_the_answer_is_stable(work: float, current: int, fill: float) -> None:
    """Asked again with the same work and the number it wanted, the policy wants the same: no oscillation."""
    policy = WorkPolicy(target_fill=fill)
    first = decide(FakeContext(work=[work], target_num_replicas=current), policy)
    assert decide(FakeContext(work=[work], target_num_replicas=first), policy) == first


def test_the_module_survives_being_pickled_by_value() -> None:
    """As Ray does it, to carry the policy into its controller."""
    cloudpickle.register_pickle_by_value(autoscaling)
    try:
        carried = cloudpickle.loads(cloudpickle.dumps(WorkPolicy(0.8, 0.2)))
    finally:
        cloudpickle.unregister_pickle_by_value(autoscaling)
    assert carried(FakeContext(work=[1.0] * 4, target_num_replicas=4))[0] == 5

"""The autoscaling policy as a plain function."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle

from deployments import autoscaling
from deployments.autoscaling import WorkPolicy


@dataclass
class FakeContext:
    waiting: list[float] = field(default_factory=lambda: [0.0])
    running: list[float] = field(default_factory=lambda: [0.0])
    capacity: list[float] = field(default_factory=lambda: [8.0])
    total_queued_requests: float = 0.0
    target_num_replicas: int = 1
    capacity_adjusted_min_replicas: int = 1
    capacity_adjusted_max_replicas: int = 10
    policy_state: dict[str, Any] = field(default_factory=dict)

    @property
    def aggregated_metrics(self) -> dict[str, dict[Any, float]]:
        named = {"waiting": self.waiting, "running": self.running, "capacity": self.capacity}
        return {name: dict(enumerate(values)) for name, values in named.items() if values}


def decide(context: FakeContext, policy: WorkPolicy | None = None) -> int:
    return (policy or WorkPolicy())(context)[0]


def test_an_idle_deployment_shrinks_to_its_minimum() -> None:
    assert decide(FakeContext(target_num_replicas=5, running=[0.0] * 5, capacity=[8.0] * 5)) == 1


def test_replicas_are_asked_for_in_proportion_to_the_work() -> None:
    # 8 running and 24 waiting images, 8 at a time, 80 % full: 32 / 6.4.
    assert decide(FakeContext(waiting=[24.0], running=[8.0])) == 5


def test_requests_that_wait_in_handles_count() -> None:
    assert decide(FakeContext(total_queued_requests=32.0)) == 5


def test_a_load_at_the_boundary_does_not_flap() -> None:
    """Just above 80 % of one replica asks for two; falling just below it again keeps both."""
    assert decide(FakeContext(running=[6.5])) == 2
    assert decide(FakeContext(running=[6.3, 0.0], capacity=[8.0, 8.0], target_num_replicas=2)) == 2
    assert decide(FakeContext(running=[4.0, 0.0], capacity=[8.0, 8.0], target_num_replicas=2)) == 1


def test_bounds_hold() -> None:
    assert decide(FakeContext(waiting=[10_000.0])) == 10
    assert decide(FakeContext(target_num_replicas=3, capacity_adjusted_min_replicas=3)) == 3


def test_capacity_is_remembered_while_no_replica_reports() -> None:
    _, state = WorkPolicy()(FakeContext(capacity=[16.0]))
    silent = FakeContext(waiting=[], running=[], capacity=[], total_queued_requests=25.0, policy_state=state)
    assert decide(silent) == 2


def test_nonsense_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="band"):
        WorkPolicy(target_fill=0.5, band=0.5)


@given(work=st.floats(0, 1e6), current=st.integers(1, 10), fill=st.floats(0.5, 1.0))
def test_the_answer_is_stable(work: float, current: int, fill: float) -> None:
    """Asked again with the same work and the number it wanted, the policy wants the same: no oscillation."""
    policy = WorkPolicy(target_fill=fill)
    first = decide(FakeContext(waiting=[work], target_num_replicas=current), policy)
    assert decide(FakeContext(waiting=[work], target_num_replicas=first), policy) == first


def test_the_module_survives_being_pickled_by_value() -> None:
    """As Ray does it, to carry the policy into its controller."""
    cloudpickle.register_pickle_by_value(autoscaling)
    try:
        carried = cloudpickle.loads(cloudpickle.dumps(WorkPolicy()))
    finally:
        cloudpickle.unregister_pickle_by_value(autoscaling)
    assert carried(FakeContext(waiting=[24.0], running=[8.0]))[0] == 5

"""Figures of a run: what counts as served in time, and what a thousand images cost."""

from array import array

import numpy as np
import pytest

from bench.simulation.cluster import REFUSED, Run
from bench.simulation.outcome import Outcome, outcome
from bench.simulation.trace import PATIENCE, Trace
from tests.bench.simulation.scenes import device, kind

KINDS = (kind(10), kind(10, num_images=4))
ALONE = [each.alone(device()) for each in KINDS]


def came_of(latencies: list[float], kinds: list[int], **seconds: float) -> Outcome:
    count = len(latencies)
    trace = Trace(np.zeros(count), np.array(kinds), np.zeros(count, np.int64), KINDS, np.zeros(1), 100.0)
    run = Run(trace, array("d", latencies), seconds=100.0, paid=1000.0, samples=[(0.0, 1, 1), (50.0, 3, 4)])
    for name, value in seconds.items():
        setattr(run, name, value)
    return outcome(run, device())


def test_in_time_is_within_a_multiple_of_what_it_takes_alone() -> None:
    late = PATIENCE * ALONE[0] + 0.01
    assert ALONE[1] > ALONE[0]
    assert came_of([1.0, late, late], [0, 0, 1]).attainment == pytest.approx(2 / 3)


def test_who_is_refused_is_not_served_in_time_and_brings_no_images() -> None:
    told = came_of([1.0, REFUSED], [0, 1])
    assert (told.attainment, told.refused, told.images) == (0.5, 0.5, 1)
    assert told.p99 == 1.0


def test_cost_is_that_of_all_that_was_paid_for() -> None:
    # 1,000 s at 3.6 dollars an hour: a dollar, for five images.
    assert came_of([1.0, 1.0], [0, 1]).cost_per_1000 == pytest.approx(200.0)


def test_waste_is_what_served_nobody() -> None:
    told = came_of([1.0], [0], starting=100.0, useful=600.0, padding=50.0)
    assert told.starting == pytest.approx(0.1)
    assert told.padding == pytest.approx(0.05)
    assert told.idle == pytest.approx(0.25)
    assert told.wasted == pytest.approx(0.4)
    assert told.figures()["wasted"] == pytest.approx(0.4)


def test_gpus_are_the_mean_over_the_time() -> None:
    told = came_of([1.0], [0])
    assert (told.gpus, told.most_gpus) == (10.0, 3)


def test_nothing_answered_is_no_outcome() -> None:
    with pytest.raises(ValueError, match="nothing was answered"):
        came_of([REFUSED], [0])

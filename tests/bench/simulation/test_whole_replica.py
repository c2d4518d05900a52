"""Whole requests in a batch: like ones together, nobody joins, nobody leaves early."""

import pytest

from bench.simulation.trace import Kind
from bench.simulation.whole_replica import WholeReplica
from deployments.engine.protocol.errors import Overloaded
from tests.bench.simulation.scenes import DECODE, PREPARE, STEP, device, kind, stage


def test_a_request_alone_takes_what_it_takes_in_the_other_engine() -> None:
    assert stage(WholeReplica, device()).play([(0.0, kind(10))]) == [PREPARE + 10 * STEP + DECODE]


def test_like_requests_that_wait_run_together_and_end_together() -> None:
    first, *others = stage(WholeReplica, device()).play([(0.0, kind(10)), (1.0, kind(6)), (2.0, kind(6))])
    assert first == PREPARE + 10 * STEP + DECODE
    assert others == [first + 2 * PREPARE + 6 * STEP + 2 * DECODE] * 2


@pytest.mark.parametrize("other", [kind(7), kind(6, guidance_scale=5.0), kind(6, sampler="dpmpp_2m")])
def test_unlike_requests_wait_for_each_other(other: Kind) -> None:
    first, second, third = stage(WholeReplica, device()).play([(0.0, kind(10)), (1.0, kind(6)), (2.0, other)])
    assert first < second < third


def test_a_batch_takes_no_more_rows_than_pay() -> None:
    ends = stage(WholeReplica, device()).play([(0.0, kind(2))] + [(0.5, kind(6)) for _ in range(5)])
    assert len(set(ends[1:])) == 2


def test_a_request_of_more_rows_than_pay_takes_several_calls_a_step() -> None:
    assert stage(WholeReplica, device()).play([(0.0, kind(10, num_images=6))]) == [PREPARE + 20 * STEP + 6 * DECODE]


def test_rows_that_are_not_padded_cost_what_lies_between() -> None:
    on = device({1: 1.0, 2: 1.25, 4: 1.875, 8: 3.0})
    assert stage(WholeReplica, on).play([(0.0, kind(1, num_images=3))]) == [PREPARE + 2.4375 + 3 * DECODE]


def test_a_full_queue_refuses() -> None:
    with pytest.raises(Overloaded):
        stage(WholeReplica, device(), queue_limit=2).play([(0.0, kind(10)) for _ in range(4)])

"""The cost model, with made-up measurements. No torch."""

import pytest

from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.cost_model import CostModel

SIZES = (1, 2, 4, 8, 16)
SMALL, LARGE, OTHER = Bucket("m", 64, 64), Bucket("m", 128, 128), Bucket("n", 64, 64)


def measure(seconds: dict[int, float], bucket: Bucket = SMALL) -> CostModel:
    costs = CostModel(SIZES)
    for size, each in seconds.items():
        costs.record_call(bucket, size, 0, each)
    return costs


def test_a_call_costs_what_it_took() -> None:
    costs = measure({2: 0.3, 4: 0.4})
    assert costs.call_seconds(SMALL, 2) == 0.3
    assert costs.call_seconds(SMALL, 3) == 0.4


def test_one_slow_call_does_not_count() -> None:
    costs = measure({2: 0.3})
    for seconds in (0.3, 30.0, 0.3):
        costs.record_call(SMALL, 2, 0, seconds)
    assert costs.call_seconds(SMALL, 2) == 0.3


def test_other_sizes_and_shapes_are_scaled() -> None:
    costs = measure({2: 0.2})
    assert costs.call_seconds(SMALL, 8) == pytest.approx(0.8)
    assert costs.call_seconds(LARGE, 2) == pytest.approx(0.8)
    assert costs.call_seconds(OTHER, 2) == pytest.approx(0.2)


def test_a_controlnet_costs_what_it_adds() -> None:
    costs = measure({2: 0.2})
    assert costs.call_seconds(SMALL, 2, control_rows=2) == pytest.approx(0.2 + 0.2 / 3)
    costs.record_call(SMALL, 2, 2, 0.5)
    assert costs.call_seconds(SMALL, 2, control_rows=2) == pytest.approx(0.5)
    assert costs.call_seconds(SMALL, 2) == pytest.approx(0.2)


def test_loras_cost_what_they_add_to_a_row_once_some_have_run() -> None:
    costs = measure({2: 0.2, 4: 0.3})
    assert costs.call_seconds(SMALL, 4, changed_rows=4) == costs.call_seconds(SMALL, 4)
    costs.record_call(SMALL, 4, 0, 0.4, changed_rows=2)
    assert costs.call_seconds(SMALL, 4, changed_rows=4) == pytest.approx(0.3 + 4 * 0.05)
    assert costs.changed_seconds(LARGE) == pytest.approx(4 * 0.05)
    assert costs.changed_seconds(OTHER) == 0
    assert costs.call_seconds(SMALL, 4) == 0.3


def test_a_call_with_loras_and_controlnets_does_not_tell_which_of_them_took_how_much() -> None:
    costs = measure({2: 0.2})
    before = costs.control_seconds(SMALL)
    costs.record_call(SMALL, 2, 2, 9.0, changed_rows=2)
    assert (costs.control_seconds(SMALL), costs.changed_seconds(SMALL)) == (before, 0)


def test_what_loras_cost_is_known_at_the_next_start() -> None:
    costs, again = measure({2: 0.2}), CostModel(SIZES)
    costs.record_call(SMALL, 2, 0, 0.3, changed_rows=2)
    again.restore("m", costs.export("m"))
    assert again.changed_seconds(SMALL) == costs.changed_seconds(SMALL) == pytest.approx(0.05)


def test_the_knee_is_where_more_rows_stop_paying() -> None:
    costs = measure({2: 0.2, 4: 0.3, 8: 0.5, 16: 1.0})
    assert costs.find_knee(SMALL) == 8
    assert costs.knee(SMALL) == 8
    assert costs.row_seconds(SMALL) == pytest.approx(0.5 / 8)


def test_the_knee_of_another_shape_lies_at_as_many_pixels() -> None:
    costs = measure({2: 0.2, 4: 0.3, 8: 0.5, 16: 1.0})
    costs.find_knee(SMALL)
    assert costs.knee(LARGE) == 2
    assert costs.knee(OTHER) == 16


def test_without_measurements_nothing_is_held_back() -> None:
    assert CostModel(SIZES).knee(SMALL) == 16


def test_decoding_is_scaled_by_pixels() -> None:
    costs = CostModel(SIZES)
    assert costs.decode_seconds(SMALL) == 0
    costs.record_decode(SMALL, 0.1)
    assert costs.decode_seconds(LARGE) == pytest.approx(0.4)

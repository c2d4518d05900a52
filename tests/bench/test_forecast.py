"""The forecast counts calls as the engine makes them."""

import pytest

from bench.contenders import serve_with_engine
from bench.forecast import forecast, simulate
from bench.workload import mixed, of_all_kinds
from deployments.engine.models import LoadedModel


@pytest.mark.parametrize("max_rows", [4, 16])
def test_the_simulated_engine_makes_the_calls_of_the_real_one(model: LoadedModel, max_rows: int) -> None:
    requests = mixed(model.spec, 8, steps=(2, 3, 5))
    calls = simulate(requests, max_rows)
    outcome = serve_with_engine(model, requests, max_rows=max_rows)
    assert (outcome.unet_calls, outcome.unet_rows) == (len(calls), sum(call.rows for call in calls))


def test_it_knows_how_long_every_kind_takes(controlled: LoadedModel) -> None:
    requests = of_all_kinds(controlled.spec, 10, steps=(4, 5))
    calls = simulate(requests, 16)
    outcome = serve_with_engine(controlled, requests, max_rows=16)
    assert (outcome.unet_calls, outcome.unet_rows) == (len(calls), sum(call.rows for call in calls))
    assert any(0 < call.controlled < call.rows for call in calls)


def test_batching_is_expected_to_pay(model: LoadedModel) -> None:
    expected = forecast(mixed(model.spec, 16), 16)
    assert expected.engine < expected.like_batches < expected.one_by_one

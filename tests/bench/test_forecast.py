"""The forecast counts calls as the engine makes them."""

import pytest

from bench.contenders import serve_with_engine
from bench.forecast import forecast, simulate
from bench.workload import mixed
from deployments.engine.models import LoadedModel


@pytest.mark.parametrize("max_rows", [4, 16])
def test_the_simulated_engine_makes_the_calls_of_the_real_one(model: LoadedModel, max_rows: int) -> None:
    requests = mixed(model.spec, 8, steps=(2, 3, 5))
    calls = simulate(requests, max_rows)
    outcome = serve_with_engine(model, requests, max_rows=max_rows)
    assert (outcome.unet_calls, outcome.unet_rows) == (len(calls), sum(calls))


def test_batching_is_expected_to_pay(model: LoadedModel) -> None:
    expected = forecast(mixed(model.spec, 16), 16)
    assert expected.engine < expected.like_batches < expected.one_by_one

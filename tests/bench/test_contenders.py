"""Every contender makes the same pictures with the same number of rows, so that times can be compared."""

from pathlib import Path

import pytest

from bench.contenders import Pipeline, largest_difference, serve_with_engine
from bench.workload import mixed, of_all_kinds
from deployments.engine.errors import EngineError
from deployments.engine.models import LoadedModel


@pytest.fixture(scope="module")
def pipeline(folder: Path, model: LoadedModel) -> Pipeline:
    return Pipeline(folder, model)


def test_all_contenders_make_the_same_pictures(model: LoadedModel, pipeline: Pipeline) -> None:
    requests = mixed(model.spec, 16, steps=(2,))
    ours = serve_with_engine(model, requests)
    alone, merged = pipeline.one_by_one(requests), pipeline.in_like_batches(requests)
    assert largest_difference(ours, alone) <= 1
    assert largest_difference(ours, merged) <= 1
    assert ours.unet_rows == alone.unet_rows == merged.unet_rows
    assert ours.unet_calls < merged.unet_calls < alone.unet_calls


def test_all_contenders_make_the_same_pictures_of_every_kind(folder: Path, controlled: LoadedModel) -> None:
    requests = of_all_kinds(controlled.spec, 20, steps=(3,))
    pipeline = Pipeline(folder, controlled)
    ours = serve_with_engine(controlled, requests)
    alone, merged = pipeline.one_by_one(requests), pipeline.in_like_batches(requests)
    assert largest_difference(ours, alone) <= 1
    assert largest_difference(ours, merged) <= 1
    assert ours.unet_rows == alone.unet_rows == merged.unet_rows
    assert ours.unet_calls < merged.unet_calls < alone.unet_calls


def test_latency_is_the_time_until_the_picture_is_there(model: LoadedModel, pipeline: Pipeline) -> None:
    requests = mixed(model.spec, 3, steps=(2,))
    alone = pipeline.one_by_one(requests)
    assert list(alone.latencies) == sorted(alone.latencies)
    assert max(alone.latencies) <= alone.seconds
    merged = pipeline.serve(requests, [[0], [1, 2]])
    assert merged.latencies[1] == pytest.approx(merged.latencies[2], abs=1e-3)
    assert max(serve_with_engine(model, requests).latencies) > 0


def test_a_refused_request_is_no_fast_request(model: LoadedModel) -> None:
    with pytest.raises(EngineError):
        serve_with_engine(model, mixed(model.spec, 3, steps=(2,)), queue_limit=1)

"""Every contender makes the same pictures with the same number of rows, so that times can be compared."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.engine.contenders import Pipelines, largest_difference, serve_with_engine
from bench.engine.workload import mixed, text
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import EngineError
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.settings import ControlSettings


@pytest.fixture(scope="module")
def pipelines(folder: Path, model: LoadedModel) -> Pipelines:
    return Pipelines(folder, model)


def test_all_contenders_make_the_same_pictures(model: LoadedModel, pipelines: Pipelines) -> None:
    requests = text(model.spec, 16, steps=(2,))
    ours = serve_with_engine([model], requests)
    alone, merged = pipelines.one_by_one(requests), pipelines.in_like_batches(requests)
    assert largest_difference(ours, alone) <= 1
    assert largest_difference(ours, merged) <= 1
    assert ours.unet_rows == alone.unet_rows == merged.unet_rows
    assert ours.unet_calls < merged.unet_calls < alone.unet_calls


def test_all_contenders_make_the_same_pictures_of_every_kind(controlled: LoadedModel, folder: Path) -> None:
    pipelines = Pipelines(folder, controlled)
    requests = mixed(controlled.spec, 20, steps=(2, 3))
    ours = serve_with_engine([controlled], requests)
    alone, merged = pipelines.one_by_one(requests), pipelines.in_like_batches(requests)
    assert largest_difference(ours, alone) <= 1
    assert largest_difference(ours, merged) <= 1
    assert ours.unet_rows == alone.unet_rows == merged.unet_rows
    assert ours.unet_calls < merged.unet_calls < alone.unet_calls


def test_a_made_up_controlnet_has_a_say_in_the_picture(controlled: LoadedModel) -> None:
    asked = [one for one in mixed(controlled.spec, 20, steps=(2,)) if one.params.controls]
    ignored = [replace(one, params=one.params.model_copy(update={"controls": _without_effect(one)})) for one in asked]
    with_net, without = serve_with_engine([controlled], asked), serve_with_engine([controlled], ignored)
    differences = [np.abs(a - b).max() for a, b in zip(with_net.pictures, without.pictures, strict=True)]
    assert min(differences) > 4


def _without_effect(request: Request) -> tuple[ControlSettings, ...]:
    return tuple(control.model_copy(update={"scale": 0.0}) for control in request.params.controls)


def test_latency_is_the_time_until_the_picture_is_there(model: LoadedModel, pipelines: Pipelines) -> None:
    requests = text(model.spec, 3, steps=(2,))
    alone = pipelines.one_by_one(requests)
    assert list(alone.latencies) == sorted(alone.latencies)
    assert max(alone.latencies) <= alone.seconds
    merged = pipelines.serve(requests, [[0], [1, 2]])
    assert merged.latencies[1] == pytest.approx(merged.latencies[2], abs=1e-3)
    assert max(serve_with_engine([model], requests).latencies) > 0


def test_a_refused_request_is_no_fast_request(model: LoadedModel) -> None:
    with pytest.raises(EngineError):
        serve_with_engine([model], text(model.spec, 3, steps=(2,)), queue_limit=1)

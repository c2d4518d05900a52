"""Guidance in some of the steps: as diffusers' users switch it off, at the price that it should have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.events import Failed
from tests.deployments.engine.harness import (
    difference,
    engine_of,
    make_reference,
    request_for,
    run,
)

STEPS = 8


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m"])
def test_guidance_that_ends_early_gives_the_picture_of_diffusers_with_its_callback(
    sampler: str, tiny_model: LoadedModel, tiny_checkpoint: Path
) -> None:
    guided = STEPS // 2

    def switch_off(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == guided:
            pipeline._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"][-1:]
        return tensors

    request = request_for(tiny_model, "x", sampler=sampler, num_inference_steps=STEPS, guidance_interval=[0.0, 0.5])
    tape, engine = run(tiny_model, [request])
    options: dict[str, Any] = {
        "callback_on_step_end": switch_off,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    reference = make_reference(tiny_checkpoint, tiny_model, request, **options)
    assert difference(tape.images("x")[0], reference) <= 1
    assert engine.tracker.total.unet_rows == STEPS + guided


@pytest.mark.parametrize(("interval", "like"), [([0.0, 1.0], {}), ([0.0, 0.05], {"guidance_scale": 1.0})])
def test_an_interval_of_all_or_no_steps_is_guidance_or_none(
    interval: list[float], like: dict[str, Any], tiny_model: LoadedModel
) -> None:
    one, _ = run(tiny_model, [request_for(tiny_model, "x", guidance_interval=interval)])
    other, _ = run(tiny_model, [request_for(tiny_model, "x", **like)])
    assert np.array_equal(one.images("x")[0], other.images("x")[0])


def test_a_row_that_is_never_guided_again_makes_room_for_another(tiny_model: LoadedModel) -> None:
    engine = engine_of(tiny_model, lambda _: None, max_rows=3)
    try:
        asked: dict[str, Any] = {"sampler": "ddim", "num_inference_steps": 10, "guidance_interval": [0.0, 0.5]}
        for name in ("first", "second"):
            engine.submit(request_for(tiny_model, name, **asked))
        for _ in range(5):
            engine.step()
            assert len(engine.running) == 1
        engine.step()
        assert len(engine.running) == 2
        engine.drain()
    finally:
        engine.close()


def test_work_is_worth_what_it_takes(tiny_model: LoadedModel) -> None:
    whole, part = (
        request_for(tiny_model, "x", num_inference_steps=10, sampler="ddim", guidance_interval=interval)
        for interval in (None, [0.2, 0.7])
    )
    assert (whole.work, part.work) == (20, 15)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_an_interval_without_guidance_is_refused(guidance: float, tiny_model: LoadedModel) -> None:
    request = request_for(tiny_model, "x", guidance_scale=guidance, guidance_interval=[0.2, 0.8])
    tape, _ = run(tiny_model, [request])
    (refused,) = tape.of("x", Failed)
    assert isinstance(refused.error, InvalidParameter)
    assert refused.error.field == "guidance_interval"

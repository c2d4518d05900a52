"""Steps without the UNet's deep blocks: exact where nothing is cached, and beside any neighbours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments.engine.conditioning.deep_cache import DeepCache
from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.openvino.runtime import OpenVinoRuntime
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.events import Failed
from deployments.engine.protocol.request import NO_INPUTS, SHALLOW_WORK
from deployments.engine.protocol.spec import ModelSpec
from tests.deployments.engine.harness import Tape, difference, engine_of, request_for, run
from tests.deployments.engine.test_engine import CROWD
from tests.deployments.engine.test_kinds import KINDS


@torch.inference_mode()
@pytest.mark.parametrize("nine_channels", [False, True])
def test_a_shallow_call_on_what_the_deep_blocks_just_answered_is_the_whole_call(
    nine_channels: bool, tiny_model: LoadedModel, tiny_model_9: LoadedModel
) -> None:
    model = tiny_model_9 if nine_channels else tiny_model
    assert model.deep_cache is not None
    generator = torch.Generator().manual_seed(0)
    prompt = model.attention_cache.project(model.prompt_encoder.encode("a cup").states).keys
    sample = torch.randn((3, 9 if nine_channels else 4, 8, 8), generator=generator)
    time, keys = torch.tensor([900.0, 500.0, 3.0]), torch.stack([prompt, prompt * 2, prompt - 1])
    answer, deep = model.deep_cache.run_whole(sample, time, keys, {})
    assert torch.equal(answer, model.unet(sample, time, encoder_hidden_states=keys).sample)
    assert torch.equal(model.deep_cache.run_shallow(sample, time, keys, deep, {}), answer)
    assert not torch.equal(model.deep_cache.run_shallow(sample, time, keys, deep * 1.1, {}), answer)


@pytest.mark.parametrize("asked", [{}, {"guidance_scale": 1.0}, {"guidance_interval": [0.3, 0.8]}, {"sampler": "heun"}])
def test_every_nth_step_runs_the_deep_blocks(
    asked: dict[str, Any], tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def count(name: str, sign: int) -> None:
        function = getattr(DeepCache, name)

        def counted(cache: DeepCache, sample: torch.Tensor, *arguments: Any) -> Any:
            calls.append(sign * len(sample))
            return function(cache, sample, *arguments)

        monkeypatch.setattr(DeepCache, name, counted)

    count("run_whole", 1)
    count("run_shallow", -1)
    merged: dict[str, Any] = {"sampler": "ddim", "num_inference_steps": 10, "deep_cache": 3} | asked
    request = request_for(tiny_model, "x", **merged)
    tape, _ = run(tiny_model, [request], max_rows=2)
    assert len(tape.images("x")) == 1
    # The first guided evaluation, too: nothing is known of its second prompt.
    guided = request.guided_evaluations(request.evaluations)
    wanted = [(1 + (i in guided)) * (1 if i % 3 == 0 or i == guided.start else -1) for i in range(request.evaluations)]
    assert calls == wanted
    assert request.work == sum(n if n > 0 else -n * SHALLOW_WORK for n in wanted)


def test_an_image_is_another_one_but_like_the_exact_one(tiny_model: LoadedModel) -> None:
    asked: dict[str, Any] = {"sampler": "dpmpp_2m", "num_inference_steps": 20, "seed": 4, "prompt": "a cup"}
    tape, _ = run(tiny_model, [request_for(tiny_model, f"{n}", deep_cache=n, **asked) for n in (1, 2, 5)])
    exact, second, fifth = (tape.images(name)[0] for name in ("1", "2", "5"))
    assert difference(exact, second) > 1
    assert np.abs(exact - second).mean() < np.abs(exact - fifth).mean()


def test_neighbours_do_not_change_a_row_that_skips_deep_blocks(tiny_model: LoadedModel) -> None:
    inputs, asked = KINDS["inpaint, in part"]
    requests = [
        request_for(tiny_model, "two", deep_cache=2, sampler="euler_a"),
        request_for(tiny_model, "three", inputs, deep_cache=3, sampler="pndm", **asked),
        request_for(tiny_model, "exact", deep_cache=2, exact=True, guidance_interval=[0.1, 0.6]),
    ]
    crowd = [request_for(tiny_model, f"r{i}", **each) for i, each in enumerate(CROWD)]
    together, _ = run(tiny_model, [*crowd[:4], *requests, *crowd[4:]], max_rows=32)
    for request in requests:
        alone, _ = run(tiny_model, [request], max_rows=32)
        limit = 0 if request.params.exact else 1
        assert difference(together.images(request.id)[0], alone.images(request.id)[0]) <= limit


def test_a_row_that_pauses_comes_back_to_what_its_deep_blocks_answered(tiny_model: LoadedModel) -> None:
    request = request_for(tiny_model, "x", deep_cache=4, num_inference_steps=12, sampler="ddim")
    alone, _ = run(tiny_model, [request], max_rows=2)
    tape = Tape()
    engine = engine_of(tiny_model, tape, max_rows=2)
    try:
        engine.submit(request)
        for _ in range(6):
            engine.step()
        (row,) = engine.running
        row.leave_slot()
        assert row.deep is not None
        engine.drain()
    finally:
        engine.close()
    assert difference(tape.images("x")[0], alone.images("x")[0]) == 0


@pytest.mark.parametrize("nine_channels", [False, True])
def test_openvino_gives_the_same_images(
    nine_channels: bool,
    tiny_model: LoadedModel,
    tiny_model_9: LoadedModel,
    tiny_checkpoint: Path,
    tiny_checkpoint_9: Path,
) -> None:
    on_torch, folder = (tiny_model_9, tiny_checkpoint_9) if nine_channels else (tiny_model, tiny_checkpoint)
    device = torch.device("cpu")
    components = Components(device, torch.float32, openvino=OpenVinoRuntime(1))
    converted = load_model(ModelSpec("tiny", str(folder)), device, torch.float32, components)
    inputs, asked = KINDS["inpaint, in part"] if nine_channels else (NO_INPUTS, {})
    for settings in ({"deep_cache": 3}, {"deep_cache": 2, "guidance_interval": [0.2, 0.7]}):
        one, other = (
            run(model, [request_for(model, "x", inputs, **{**settings, **asked})])[0] for model in (on_torch, converted)
        )
        assert difference(one.images("x")[0], other.images("x")[0]) <= 1
    assert converted.backend == "openvino"


def test_deep_blocks_that_controlnets_act_on_cannot_be_left_out(tiny_controlled: LoadedModel) -> None:
    inputs, asked = KINDS["controlnet"]
    tape, _ = run(tiny_controlled, [request_for(tiny_controlled, "x", inputs, deep_cache=2, **asked)])
    (refused,) = tape.of("x", Failed)
    assert isinstance(refused.error, InvalidParameter)
    assert refused.error.field == "deep_cache"

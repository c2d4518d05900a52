"""The engine's laws, on tiny real networks."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from deployments.engine.conditioning.cross_attention import EncodedPrompt
from deployments.engine.engine import Engine
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import (
    GenerationFailed,
    InvalidParameter,
    NumericalFailure,
    Overloaded,
    UnknownModel,
)
from deployments.engine.protocol.events import (
    Accepted,
    Event,
    Failed,
    Finished,
    ImageDone,
    ImageFailed,
    Preview,
    Progress,
)
from deployments.engine.protocol.inputs import ImageArray, Inputs
from deployments.engine.protocol.sampler_names import SAMPLERS
from deployments.engine.protocol.settings import ControlSettings
from deployments.engine.row import Row
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.steps import preparer as preparer_module
from deployments.engine.steps.decode import DecodedImage
from deployments.engine.steps.preparer import PATIENCE_S
from tests.deployments.engine.harness import (
    Tape,
    difference,
    engine_of,
    pixels_of,
    prepare_all,
    reference_image,
    request_for,
    run,
)
from tests.deployments.engine.test_kinds import picture

CROWD: tuple[dict[str, Any], ...] = (
    {"sampler": "ddim", "num_inference_steps": 10, "guidance_scale": 7.5, "seed": 11},
    {"sampler": "pndm", "num_inference_steps": 15, "guidance_scale": 1.0, "seed": 12},
    {"sampler": "euler", "num_inference_steps": 20, "guidance_scale": 3.0, "seed": 13, "negative_prompt": "dark"},
    {"sampler": "euler_a", "num_inference_steps": 25, "guidance_scale": 7.5, "seed": 14},
    {"sampler": "dpmpp_2m", "num_inference_steps": 30, "guidance_scale": 5.0, "seed": 15, "clip_skip": 1},
    {"sampler": "unipc", "num_inference_steps": 35, "guidance_scale": 0.0, "seed": 16},
    {"sampler": "dpmpp_2m_sde", "num_inference_steps": 40, "guidance_scale": 7.5, "seed": 17},
    {"sampler": "lms", "num_inference_steps": 45, "guidance_scale": 9.0, "seed": 18, "prompt": "word " * 90},
)


@pytest.fixture(params=["epsilon", "v_prediction"])
def either_model(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    tiny_checkpoint_v: Path,
    tiny_model: LoadedModel,
    tiny_model_v: LoadedModel,
) -> tuple[Path, LoadedModel]:
    return (tiny_checkpoint, tiny_model) if request.param == "epsilon" else (tiny_checkpoint_v, tiny_model_v)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_engine_gives_the_picture_of_diffusers(either_model: tuple[Path, LoadedModel], sampler: str) -> None:
    folder, model = either_model
    request = request_for(model, "alone", sampler=sampler, guidance_scale=4.0, negative_prompt="blurry", seed=5)
    tape, _ = run(model, [request])
    assert difference(tape.images("alone")[0], reference_image(folder, model, request)) <= 1


@pytest.mark.parametrize("asked", [{"guidance_scale": 1.0}, {"clip_skip": 1}, {"width": 96, "height": 64}])
def test_parameters_mean_what_they_mean_in_diffusers(
    tiny_checkpoint: Path, tiny_model: LoadedModel, asked: dict[str, Any]
) -> None:
    request = request_for(tiny_model, "alone", **asked)
    tape, _ = run(tiny_model, [request])
    assert difference(tape.images("alone")[0], reference_image(tiny_checkpoint, tiny_model, request)) <= 1


def test_image_i_is_the_image_of_seed_plus_i(tiny_model: LoadedModel) -> None:
    together, _ = run(tiny_model, [request_for(tiny_model, "three", num_images=3, seed=40, sampler="euler_a")])
    alone, _ = run(tiny_model, [request_for(tiny_model, "x", prompt="a picture of three", seed=42, sampler="euler_a")])
    assert [event.seed for event in sorted(together.of("three", ImageDone), key=lambda e: e.index)] == [40, 41, 42]
    assert difference(together.images("three")[2], alone.images("x")[0]) <= 1


def test_neighbours_do_not_change_a_row(tiny_model: LoadedModel) -> None:
    requests = [request_for(tiny_model, f"r{i}", **asked) for i, asked in enumerate(CROWD)]
    crowd, _ = run(tiny_model, requests)
    for request in requests:
        alone, _ = run(tiny_model, [request])
        assert difference(crowd.images(request.id)[0], alone.images(request.id)[0]) <= 1


def test_neighbours_do_not_change_a_bit_at_a_fixed_padded_size(tiny_model: LoadedModel) -> None:
    requests = [request_for(tiny_model, f"r{i}", **asked) for i, asked in enumerate(CROWD[:7])]
    crowd, _ = run(tiny_model, requests, padded_sizes=(16,))
    for request in requests:
        alone, _ = run(tiny_model, [request], padded_sizes=(16,))
        assert np.array_equal(crowd.images(request.id)[0], alone.images(request.id)[0])


def test_an_exact_image_has_the_same_bytes_whatever_its_neighbours_do(tiny_controlled: LoadedModel) -> None:
    hinted = Inputs(hints=(np.full((64, 64, 3), 99, dtype=np.uint8),))
    exact = [
        request_for(tiny_controlled, "text", exact=True, sampler="euler_a", guidance_scale=1.0),
        request_for(tiny_controlled, "hinted", hinted, exact=True, controls=({"type": "canny"},)),
    ]
    neighbours = [request_for(tiny_controlled, f"r{i}", **asked) for i, asked in enumerate(CROWD)]
    hinted_neighbour = request_for(tiny_controlled, "also hinted", hinted, controls=({"type": "canny"},))
    crowd, _ = run(tiny_controlled, [*neighbours[:3], *exact, hinted_neighbour, *neighbours[3:]], decode_batch=4)
    for request in exact:
        alone, _ = run(tiny_controlled, [request], decode_batch=4)
        assert np.array_equal(crowd.images(request.id)[0], alone.images(request.id)[0])


def test_eight_requests_cost_no_more_calls_than_the_longest(tiny_model: LoadedModel) -> None:
    requests = [request_for(tiny_model, f"r{i}", **asked) for i, asked in enumerate(CROWD)]
    longest = max(run(tiny_model, [request])[1].tracker.total.unet_calls for request in requests)
    _, engine = run(tiny_model, requests)
    assert engine.tracker.total.unet_calls <= longest + 2
    assert engine.tracker.total.images == 8


def test_work_is_worth_what_it_costs_in_full_calls_whoever_shares_it(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CostModel, "row_seconds", lambda self, bucket: 0.5)
    requests = [request_for(tiny_model, f"r{i}", **asked) for i, asked in enumerate(CROWD)]
    _, crowd = run(tiny_model, requests)
    alone = [run(tiny_model, [request])[1] for request in requests]
    assert crowd.admission.estimator.work_done == 0.5 * crowd.tracker.total.unet_rows
    assert crowd.admission.estimator.work_done == sum(engine.admission.estimator.work_done for engine in alone)
    assert crowd.admission.queue.seconds == 0.0


def test_a_late_request_starts_at_the_next_step(tiny_model: LoadedModel) -> None:
    with drive(tiny_model) as (engine, tape):
        engine.submit(request_for(tiny_model, "early", sampler="ddim", num_inference_steps=20))
        for _ in range(7):
            engine.step()
        engine.submit(request_for(tiny_model, "late", sampler="ddim", num_inference_steps=5))
        prepare_all(engine)
        engine.step()
        assert tape.of("late", Progress)[-1].step == 1
        assert tape.of("early", Progress)[-1].step == 8


def test_a_cancelled_request_has_no_rows_in_the_next_step(tiny_model: LoadedModel) -> None:
    with drive(tiny_model) as (engine, tape):
        engine.submit(request_for(tiny_model, "stays", num_inference_steps=20, guidance_scale=1.0))
        engine.submit(request_for(tiny_model, "leaves", num_inference_steps=20, num_images=4))
        engine.step()
        before = engine.tracker.total.unet_rows
        assert engine.cancel("leaves")
        engine.step()
        assert engine.tracker.total.unet_rows - before == 1
        assert not engine.cancel("leaves")
        engine.drain()
        assert not tape.of("leaves", ImageDone)
        assert tape.of("stays", Finished)


def test_a_waiting_request_can_be_cancelled(tiny_model: LoadedModel) -> None:
    with drive(tiny_model, max_rows=2) as (engine, tape):
        engine.submit(request_for(tiny_model, "first"))
        engine.submit(request_for(tiny_model, "second"))
        engine.step()
        prepare_all(engine)
        engine.step()
        engine.cancel("second")
        told = list(tape.events["second"])
        engine.drain()
        assert len(engine.admission.queue) == 0
        assert isinstance(told[0], Accepted)
        assert tape.events["second"] == told


def test_rows_beyond_the_capacity_wait_and_still_come(tiny_model: LoadedModel) -> None:
    tape, engine = run(tiny_model, [request_for(tiny_model, "many", num_images=5)], max_rows=4)
    assert len(tape.images("many")) == 5
    assert engine.tracker.total.unet_rows <= 4 * engine.tracker.total.unet_calls


def test_a_row_of_nan_fails_alone(tiny_model: LoadedModel) -> None:
    requests = [request_for(tiny_model, name, prompt="the same") for name in ("sick", "well")]
    with drive(tiny_model) as (engine, tape):
        for request in requests:
            engine.submit(request)
        engine.step()
        spoil(engine, "sick", torch.nan)
        while not engine.tracker.total.retries:
            engine.step()
        spoil(engine, "sick", torch.nan)
        engine.drain()
        (failure,) = tape.of("sick", ImageFailed)
        assert isinstance(failure.error, NumericalFailure)
        assert engine.tracker.total.retries == 1
        healthy, _ = run(tiny_model, [requests[1]])
        assert difference(tape.images("well")[0], healthy.images("well")[0]) <= 1


def test_a_row_of_nan_is_made_again_once(tiny_model: LoadedModel) -> None:
    request = request_for(tiny_model, "sick", sampler="euler_a")
    with drive(tiny_model) as (engine, tape):
        engine.submit(request)
        engine.step()
        spoil(engine, "sick", torch.nan)
        engine.drain()
        healthy, _ = run(tiny_model, [request])
        assert difference(tape.images("sick")[0], healthy.images("sick")[0]) == 0
        assert engine.tracker.total.wasted_steps == engine.tracker.total.row_steps // 2


def test_a_row_that_raises_in_a_step_fails_alone(tiny_model: LoadedModel) -> None:
    with drive(tiny_model) as (engine, tape):
        for name in ("a", "b", "poison", "c", "d"):
            engine.submit(request_for(tiny_model, name, sampler="euler_a"))
        engine.step()
        poisoned = next(row for row in engine.running if row.request.id == "poison")
        poisoned.prompt = EncodedPrompt(poisoned.prompt.embedding, poisoned.prompt.keys[:-1])
        engine.drain()
        assert isinstance(tape.of("poison", ImageFailed)[0].error, GenerationFailed)
        for name in ("a", "b", "c", "d"):
            alone, _ = run(tiny_model, [request_for(tiny_model, name, sampler="euler_a")])
            assert difference(tape.images(name)[0], alone.images(name)[0]) <= 1


def test_a_row_whose_encoding_raises_fails_alone(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.engine.steps import compression

    encode = compression.encode_image

    def fails_for_webp(picture: ImageArray, output_format: Any, quality: int | None) -> bytes:
        if output_format == "webp":
            raise OSError("injected")
        return encode(picture, output_format, quality)

    monkeypatch.setattr(compression, "encode_image", fails_for_webp)
    requests = [
        request_for(tiny_model, "bad", output_format="webp"),
        request_for(tiny_model, "good", output_format="png"),
    ]
    tape, engine = run(tiny_model, requests)
    assert isinstance(tape.of("bad", ImageFailed)[0].error, GenerationFailed)
    assert len(tape.images("good")) == 1
    assert (engine.tracker.total.images, engine.tracker.total.failures) == (1, 1)


def test_an_image_that_cannot_be_decoded_fails_alone(tiny_model: LoadedModel) -> None:
    class FailsInBatches:
        """A VAE that cannot decode latents whose first value is huge."""

        def __init__(self, vae: Any) -> None:
            self._vae, self.config = vae, vae.config

        def decode(self, latents: torch.Tensor, **options: Any) -> Any:
            if bool((latents.abs() > 1e6).any()):
                raise RuntimeError("injected")
            return self._vae.decode(latents, **options)

    model = replace(tiny_model, vae=FailsInBatches(tiny_model.vae))
    with drive(model, decode_batch=4) as (engine, tape):
        for name in ("a", "bad", "b"):
            engine.submit(request_for(model, name, sampler="ddim", num_inference_steps=3))
        engine.step()
        engine.step()
        spoil(engine, "bad", 1e9)
        engine.drain()
        assert tape.of("bad", ImageFailed)
        assert tape.images("a")
        assert tape.images("b")


def spoil(engine: Engine, request_id: str, value: float) -> None:
    """Writes `value` into the latents of a running row."""
    row = next(row for row in engine.running if row.request.id == request_id)
    state = row.state if row.slot is None else row.slot.arena.states[row.slot.index]
    with torch.inference_mode():
        state[0, 0, 0, 0] = value


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_every_format_holds_the_same_picture(tiny_model: LoadedModel, output_format: str) -> None:
    tape, _ = run(
        tiny_model,
        [
            request_for(tiny_model, "x", prompt="same", output_format=output_format),
            request_for(tiny_model, "reference", prompt="same"),
        ],
    )
    image = tape.of("x", ImageDone)[0]
    assert image.format == output_format
    assert np.abs(pixels_of(image.data) - tape.images("reference")[0]).mean() < 16


def test_previews_come_on_the_way_and_are_small_pictures(tiny_model: LoadedModel) -> None:
    tape, _ = run(tiny_model, [request_for(tiny_model, "x", previews=3, sampler="ddim", num_inference_steps=12)])
    previews = tape.of("x", Preview)
    assert 1 <= len(previews) <= 3
    assert all(0 < preview.step < 12 for preview in previews)
    assert {pixels_of(preview.data).shape for preview in previews} == {(32, 32, 3)}


def test_too_long_a_prompt_is_refused_with_its_field(tiny_model: LoadedModel) -> None:
    tape, engine = run(tiny_model, [request_for(tiny_model, "x", negative_prompt="word " * 1500)])
    (refused,) = tape.of("x", Failed)
    assert isinstance(refused.error, InvalidParameter)
    assert refused.error.field == "negative_prompt"
    assert engine.tracker.total.unet_calls == 0


def test_an_unknown_model_is_refused(tiny_model: LoadedModel) -> None:
    request = request_for(tiny_model, "x")
    stranger = replace(request, params=request.params.model_copy(update={"model_name": "no-such-model"}))
    tape, _ = run(tiny_model, [stranger])
    assert isinstance(tape.of("x", Failed)[0].error, UnknownModel)


def test_a_full_queue_refuses_and_forgets_nothing(tiny_model: LoadedModel) -> None:
    tape, engine = run(tiny_model, [request_for(tiny_model, f"r{i}") for i in range(5)], queue_limit=3)
    refused = [name for name in tape.events if tape.of(name, Failed)]
    assert len(refused) == 2
    assert all(isinstance(tape.of(name, Failed)[0].error, Overloaded) for name in refused)
    assert engine.tracker.total.images == 3


def test_a_full_queue_and_a_wrong_request_are_refused_before_anything_is_encoded(tiny_controlled: LoadedModel) -> None:
    hinted = Inputs(image=np.zeros((64, 64, 3), np.uint8), hints=(np.zeros((64, 64, 3), np.uint8),))
    asked = {"controls": ({"type": "canny"},)}
    with drive(tiny_controlled, queue_limit=1) as (engine, tape), encodings(tiny_controlled) as encoded:
        engine.submit(request_for(tiny_controlled, "first", hinted, **asked))
        engine.submit(request_for(tiny_controlled, "late", hinted, **asked))
        engine.submit(request_for(tiny_controlled, "wrong", hinted))
        assert isinstance(tape.of("late", Failed)[0].error, Overloaded)
        assert isinstance(tape.of("wrong", Failed)[0].error, InvalidParameter)
        assert not encoded
        engine.drain()
        assert {"CLIPTextModel", "Encoder", "ControlNetConditioningEmbedding"} == set(encoded)
        assert len(tape.images("first")) == 1


def test_a_hint_is_embedded_once_for_all_images_and_steps(tiny_controlled: LoadedModel) -> None:
    hinted = Inputs(hints=(np.zeros((64, 64, 3), np.uint8),))
    with encodings(tiny_controlled) as encoded:
        run(tiny_controlled, [request_for(tiny_controlled, "x", hinted, controls=({"type": "canny"},), num_images=3)])
    assert encoded.count("ControlNetConditioningEmbedding") == 1


def test_rows_that_run_do_not_wait_for_requests_that_are_prepared(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    begun = watch_calls(monkeypatch, "prepare", before=may_go_on.wait)
    with drive(tiny_model) as (engine, tape):
        may_go_on.set()
        engine.submit(request_for(tiny_model, "early", sampler="ddim", num_inference_steps=20))
        engine.step()
        may_go_on.clear()
        engine.submit(request_for(tiny_model, "slow", num_inference_steps=4))
        for _ in range(19):
            engine.step()
        assert tape.of("early", Progress)[-1].step == 20
        assert begun == ["prepare"] * 2
        assert not tape.of("slow", Accepted)
        may_go_on.set()
        engine.drain()
        assert all(len(tape.images(name)) == 1 for name in ("early", "slow"))


def test_an_idle_engine_waits_for_preparations_until_its_driver_has_a_message(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, begun = threading.Event(), time.perf_counter()
    watch_calls(monkeypatch, "prepare", before=lambda: may_go_on.wait(60))
    with drive(tiny_model) as (engine, tape):
        gone = Row(request_for(tiny_model, "gone"), *[cast(Any, None)] * 6)

        def decode_meanwhile() -> bool:
            engine._put_decoded(DecodedImage(gone, b"", 0.0))
            return False

        engine.submit(request_for(tiny_model, "slow", num_inference_steps=1))
        messages = iter((False, False, True))
        assert not engine.step(lambda: next(messages))
        assert not engine.step(decode_meanwhile)
        assert time.perf_counter() - begun < PATIENCE_S / 2
        may_go_on.set()
        engine.drain()
        assert len(tape.images("slow")) == 1


def test_what_is_prepared_and_waits_is_held_in_memory(tiny_controlled: LoadedModel) -> None:
    with drive(tiny_controlled, max_rows=2) as (engine, tape):
        engine.submit(request_for(tiny_controlled, "runs", num_inference_steps=20))
        engine.step()
        before = engine.admission._held_bytes(engine.running)
        hinted = Inputs(hints=(picture(3),))
        asked: dict[str, Any] = {"controls": (ControlSettings(type="canny"),), "num_inference_steps": 2}
        engine.submit(request_for(tiny_controlled, "waits", hinted, **asked))
        prepare_all(engine)
        engine.step()
        assert tape.of("waits", Accepted)
        (hint,) = (control.hint for control in engine.tracker.requests["waits"].inputs.controls)
        assert engine.admission._held_bytes(engine.running) - before == hint.nbytes
        engine.drain()
        assert engine.tracker.prepared_bytes() == 0


def test_no_more_is_prepared_than_a_full_call_ahead(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = watch_calls(monkeypatch, "prepare")
    with drive(tiny_model, max_rows=4) as (engine, tape):
        for i in range(6):
            engine.submit(request_for(tiny_model, f"r{i}", num_inference_steps=20))
        engine.step()
        assert len(engine.running) == 2
        prepare_all(engine)
        engine.step()
        assert len(begun) == 4
        engine.drain()
        assert all(len(tape.images(name)) == 1 for name in tape.events)


@pytest.mark.parametrize("fails", [False, True])
def test_a_request_that_leaves_while_it_is_prepared_is_not_heard_of_again(
    fails: bool, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()

    def before() -> None:
        may_go_on.wait()
        if fails and len(begun) > 1:
            raise RuntimeError("injected")

    begun = watch_calls(monkeypatch, "prepare", before=before)
    with drive(tiny_model) as (engine, tape):
        may_go_on.set()
        engine.submit(request_for(tiny_model, "stays", num_inference_steps=20))
        engine.step()
        may_go_on.clear()
        engine.submit(request_for(tiny_model, "leaves"))
        engine.step()
        assert engine.cancel("leaves")
        may_go_on.set()
        prepare_all(engine)
        engine.drain()
        assert not tape.events["leaves"]
        assert tape.of("stays", Finished)


def test_a_request_that_leaves_before_it_is_prepared_costs_nothing(tiny_model: LoadedModel) -> None:
    with drive(tiny_model) as (engine, tape), encodings(tiny_model) as encoded:
        engine.submit(request_for(tiny_model, "leaves", prompt="gone before it was read"))
        assert engine.cancel("leaves")
        engine.drain()
        assert not encoded
        assert not tape.events


def test_events_tell_a_request_s_whole_life_in_order(tiny_model: LoadedModel) -> None:
    tape, _ = run(tiny_model, [request_for(tiny_model, "x", sampler="ddim", num_inference_steps=3)])
    kinds: list[type[Event]] = [type(event) for event in tape.events["x"]]
    assert kinds == [Accepted, Progress, Progress, Progress, ImageDone, Finished]
    timings = tape.of("x", Finished)[0].timings
    assert timings.total_ms >= timings.denoise_ms > 0


def test_two_sizes_share_the_device(tiny_model: LoadedModel) -> None:
    with drive(tiny_model) as (engine, tape):
        engine.submit(request_for(tiny_model, "small", num_inference_steps=20, sampler="ddim"))
        engine.submit(request_for(tiny_model, "large", num_inference_steps=20, sampler="ddim", width=128, height=128))
        for _ in range(20):
            engine.step()
        assert tape.of("small", Progress)[-1].step >= 4
        assert tape.of("large", Progress)[-1].step >= 2


@contextmanager
def encodings(model: LoadedModel) -> Iterator[list[str]]:
    """The classes of the networks that see prompts and pictures, once for each time that one of them runs."""
    ran: list[str] = []
    parts = [
        net for net in model.networks if type(net).__name__ in ("CLIPTextModel", "ControlNetConditioningEmbedding")
    ]
    hooks = [
        part.register_forward_hook(lambda part, *_: ran.append(type(part).__name__))
        for part in (*parts, model.vae.encoder)
    ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def watch_calls(monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[[], object] = lambda: None) -> list[str]:
    """The calls of one of the preparer's functions; `before` is called before each."""
    ran: list[str] = []
    function = getattr(preparer_module, name)

    def noted(*arguments: Any) -> Any:
        ran.append(name)
        before()
        return function(*arguments)

    monkeypatch.setattr(preparer_module, name, noted)
    return ran


class drive:
    """An engine and its tape, closed at the end."""

    def __init__(self, model: LoadedModel, **options: Any) -> None:
        self._tape = Tape()
        self._engine = engine_of(model, self._tape, **options)

    def __enter__(self) -> tuple[Engine, Tape]:
        return self._engine, self._tape

    def __exit__(self, *_: object) -> None:
        self._engine.close()


def test_closing_an_engine_ends_its_threads(tiny_model: LoadedModel) -> None:
    def ours() -> set[str]:
        return {
            thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "encode", "prepare"))
        }

    before = ours()
    run(tiny_model, [request_for(tiny_model, "x")])
    assert ours() == before


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

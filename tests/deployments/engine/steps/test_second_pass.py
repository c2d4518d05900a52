"""A second pass over an enlarged image: diffusers' two pipelines one after the other, in one request."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from PIL import Image

from bench.engine.pipelines import arguments
from deployments.engine.conditioning.image_encoder import ImageEncoder
from deployments.engine.engine import Engine
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import DoesNotFit, GenerationFailed, InvalidParameter
from deployments.engine.protocol.events import Accepted, Failed, Finished, ImageFailed, Preview, Progress
from deployments.engine.protocol.inputs import ImageArray, Inputs
from deployments.engine.protocol.request import NO_INPUTS, Request
from deployments.engine.scheduling.forecast_inputs import plan_work
from tests.deployments.engine.harness import (
    Pixels,
    Tape,
    difference,
    engine_of,
    load_reference,
    make_reference,
    request_for,
    run,
)
from tests.deployments.engine.test_kinds import KINDS, control, picture, requests_of

LARGER: Final = 96
STEPS: Final = 8


def asked(model: LoadedModel, name: str, upscaler: str = "latent", inputs: Inputs = NO_INPUTS, **more: Any) -> Request:
    hires = {"scale": 1.5, "strength": 0.6, "upscaler": upscaler} | more.pop("hires", {})
    return request_for(model, name, inputs, **({"sampler": "ddim", "hires": hires} | more))


def enlarge(pixels: ImageArray) -> ImageArray:
    return np.asarray(Image.fromarray(pixels).resize((LARGER, LARGER), Image.Resampling.LANCZOS))


def reference_of(folder: Path, model: LoadedModel, request: Request, index: int = 0) -> Pixels:
    """What a diffusers user gets who enlarges the result of one pipeline for the other."""
    second = request.second_pass
    assert second is not None
    assert request.params.hires is not None
    hints = tuple(enlarge(hint) for hint in request.inputs.hints)
    if request.params.hires.upscaler == "lanczos":
        made = make_reference(folder, model, request, index).astype(np.uint8)
        return make_reference(folder, model, replace(second, inputs=Inputs(image=enlarge(made), hints=hints)), index)
    pipeline = load_reference(folder, model, request)
    latents = pipeline(**arguments([request], index), output_type="latent").images
    larger = torch.nn.functional.interpolate(latents, size=(LARGER // model.factor,) * 2, mode="bilinear")
    blank = np.zeros((LARGER, LARGER, 3), np.uint8)
    return make_reference(folder, model, replace(second, inputs=Inputs(image=blank, hints=hints)), index, image=larger)


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m", "heun"])
def test_two_passes_give_the_picture_of_two_pipelines(
    sampler: str, upscaler: str, tiny_model: LoadedModel, tiny_checkpoint: Path
) -> None:
    request = asked(tiny_model, "x", upscaler, sampler=sampler, num_images=2)
    tape, _ = run(tiny_model, [request])
    for index, made in enumerate(tape.images("x")):
        assert made.shape == (LARGER, LARGER, 3)
        assert difference(made, reference_of(tiny_checkpoint, tiny_model, request, index)) <= 1


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_two_passes_in_a_crowd_give_the_picture_of_two_pipelines(
    upscaler: str, tiny_controlled: LoadedModel, tiny_checkpoint: Path
) -> None:
    crowd = requests_of(tiny_controlled, list(KINDS), "ddim")
    plain = asked(tiny_controlled, "plain", upscaler, num_inference_steps=11, hires={"steps": 6})
    followed = asked(
        tiny_controlled, "followed", upscaler, Inputs(hints=(picture(3),)), controls=(control("canny", scale=0.8),)
    )
    tape, engine = run(tiny_controlled, [*crowd[:4], plain, *crowd[4:], followed], max_rows=32)
    for request in (plain, followed):
        reference = reference_of(tiny_checkpoint, tiny_controlled, request)
        assert difference(tape.images(request.id)[0], reference) <= 1, request.id
    assert not engine.is_busy


def test_progress_counts_both_passes_and_the_accepted_steps_are_all_of_them(tiny_model: LoadedModel) -> None:
    tape, _ = run(tiny_model, [asked(tiny_model, "x", previews=2)])
    (accepted,) = tape.of("x", Accepted)
    progress = [(event.step, event.steps) for event in tape.of("x", Progress) if event.step]
    # Of eight steps, 0.6 leaves four.
    assert accepted.steps == STEPS + 4
    assert progress == [(step, STEPS + 4) for step in range(1, STEPS + 5)]
    assert len(tape.of("x", Preview)) == 2
    assert len(tape.of("x", Finished)) == 1


@pytest.fixture
def engine(tiny_model: LoadedModel) -> Iterator[tuple[Engine, Tape]]:
    tape = Tape()
    engine = engine_of(tiny_model, tape)
    yield engine, tape
    engine.close()


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_a_request_can_be_cancelled_between_its_passes(
    upscaler: str, engine: tuple[Engine, Tape], tiny_model: LoadedModel
) -> None:
    running, tape = engine
    running.submit(asked(tiny_model, "x", upscaler))
    while not running._decoded.qsize() and not running.admission._paused:
        running.step()
    assert running.cancel("x")
    running.drain()
    assert not tape.images("x")
    assert not running.admission._paused
    assert not running.is_busy


def test_a_forecast_knows_both_passes(tiny_model: LoadedModel) -> None:
    double = asked(tiny_model, "x")
    planned = plan_work(double, STEPS)
    assert planned.steps == pytest.approx(STEPS + 4 * 2.25)
    second = double.second_pass
    assert second is not None
    assert plan_work(second, 4).steps == 4


def test_progress_never_goes_back_though_images_are_in_different_passes(tiny_model: LoadedModel) -> None:
    tape, _ = run(tiny_model, [asked(tiny_model, "x", num_images=3)], max_rows=2)
    steps = [event.step for event in tape.of("x", Progress)]
    assert steps == sorted(steps)


def test_a_picture_that_does_not_fit_enlarged_is_told_as_that(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(ImageEncoder, "encode_once", fail)
    tape, _ = run(tiny_model, [asked(tiny_model, "x", "lanczos")])
    (failed,) = tape.of("x", ImageFailed)
    assert isinstance(failed.error, DoesNotFit)


def test_a_first_pass_that_cannot_be_enlarged_fails_its_image_alone(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(ImageEncoder, "encode_once", fail)
    tape, _ = run(tiny_model, [asked(tiny_model, "x", "lanczos"), asked(tiny_model, "y", "latent")])
    (failed,) = tape.of("x", ImageFailed)
    assert isinstance(failed.error, GenerationFailed)
    assert len(tape.images("y")) == 1


@pytest.mark.parametrize(
    "changes",
    [{"hires": {"strength": 0.01}}, {"sampler": "lcm", "num_inference_steps": 4, "hires": {"strength": 0.1}}],
)
def test_a_second_pass_of_no_steps_is_refused_before_the_first_begins(
    changes: dict[str, Any], tiny_model: LoadedModel
) -> None:
    tape, engine = run(tiny_model, [asked(tiny_model, "x", **changes)])
    (failed,) = tape.of("x", Failed)
    assert isinstance(failed.error, InvalidParameter)
    assert failed.error.field == "hires"
    assert not engine.tracker.total.unet_calls


@pytest.mark.parametrize("scale", [33.0, 1.0])
def test_a_scale_out_of_range_is_refused(scale: float, tiny_model: LoadedModel) -> None:
    with pytest.raises(ValueError, match="scale"):
        asked(tiny_model, "x", hires={"scale": scale})


def test_a_size_beyond_the_models_is_refused_and_so_is_an_image_to_start_from(tiny_model: LoadedModel) -> None:
    with pytest.raises(InvalidParameter, match="1536 x 1536"):
        asked(tiny_model, "x", width=1024, height=1024)
    with pytest.raises(InvalidParameter, match="no image"):
        asked(tiny_model, "x", inputs=Inputs(image=picture(1)))


def test_the_work_of_both_passes_counts_by_their_sizes(tiny_model: LoadedModel) -> None:
    plain, double = request_for(tiny_model, "x", sampler="ddim"), asked(tiny_model, "x")
    assert plain.work == 2 * STEPS
    assert double.work == pytest.approx(2 * STEPS + 2 * 4 * 2.25)


def test_what_does_not_fit_enlarged_is_refused_at_once(
    engine: tuple[Engine, Tape], tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, tape = engine
    fits = running.admission._rows_that_fit

    def fits_if_small(request: Request, *more: Any) -> int:
        return 0 if request.bucket.width > 64 else fits(request, *more)

    monkeypatch.setattr(running.admission, "_rows_that_fit", fits_if_small)
    running.submit(asked(tiny_model, "x"))
    running.drain()
    (failed,) = tape.of("x", Failed)
    assert isinstance(failed.error, DoesNotFit)

"""Every kind of request equals diffusers' own pipeline for it, alone and beside other kinds."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image

from deployments.engine import engine as engine_module
from deployments.engine.conditioning.resizing import resize
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import GenerationFailed
from deployments.engine.protocol.events import Failed, ImageDone, ImageFailed
from deployments.engine.protocol.inputs import ImageArray, Inputs, Mask
from deployments.engine.protocol.request import Request
from deployments.engine.steps import previews as previews_module
from deployments.engine.steps.prepare import begin_row
from deployments.uploads.masked_area import crop_to_mask
from tests.deployments.engine.harness import Tape, difference, reference_image, request_for, run

SAMPLERS: Final = ("ddim", "pndm", "euler_a", "dpmpp_2m", "unipc")
SIDE: Final = 64


def picture(seed: int) -> ImageArray:
    """Soft random colours [64, 64, 3]."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (8, 8, 3))
    return np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)


def half_mask(share: float = 0.5) -> Mask:
    """The left `share` is painted anew."""
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[:, : int(SIDE * share)] = 255
    return mask


def control(name: str, **settings: Any) -> dict[str, Any]:
    return {"type": name} | settings


KINDS: Final[dict[str, tuple[Inputs, dict[str, Any]]]] = {
    "image-to-image": (Inputs(image=picture(1)), {"strength": 0.6}),
    "image-to-image, all the way": (Inputs(image=picture(1)), {"strength": 1.0}),
    "inpaint": (Inputs(image=picture(2), mask=half_mask()), {"strength": 1.0}),
    "inpaint, in part": (Inputs(image=picture(2), mask=half_mask(0.7)), {"strength": 0.7, "mask_feather": 5}),
    "controlnet": (Inputs(hints=(picture(3),)), {"controls": (control("canny"),)}),
    "controlnet for a while": (
        Inputs(hints=(picture(3),)),
        {"controls": (control("canny", scale=0.7, start=0.2, end=0.8),)},
    ),
    "controlnet guessing": (Inputs(hints=(picture(3),)), {"controls": (control("depth"),), "guess_mode": True}),
    "controlnet with averages": (Inputs(hints=(picture(3),)), {"controls": (control("shuffle"),)}),
    "two controlnets": (
        Inputs(hints=(picture(3), picture(4))),
        {"controls": (control("canny", scale=0.5), control("depth", scale=1.2, end=0.6))},
    ),
    "controlnet, image-to-image": (
        Inputs(image=picture(5), hints=(picture(3),)),
        {"strength": 0.6, "controls": (control("canny"),)},
    ),
    "controlnet, inpaint": (
        Inputs(image=picture(5), mask=half_mask(), hints=(picture(3),)),
        {"strength": 0.9, "controls": (control("depth"),)},
    ),
}
NINE: Final = [kind for kind in KINDS if "inpaint" in kind]


def requests_of(model: LoadedModel, kinds: list[str], sampler: str) -> list[Request]:
    return [
        request_for(model, kind, KINDS[kind][0], sampler=sampler, seed=7 + i, **KINDS[kind][1])
        for i, kind in enumerate(kinds)
    ]


@pytest.fixture(scope="session", params=SAMPLERS)
def crowd(request: pytest.FixtureRequest, tiny_controlled: LoadedModel) -> tuple[list[Request], Tape]:
    """Every kind and text-to-image at once, with one sampler, and what came of them."""
    asked = requests_of(tiny_controlled, list(KINDS), request.param)
    asked += [request_for(tiny_controlled, f"text {i}", sampler=request.param, guidance_scale=i) for i in (0, 3)]
    tape, engine = run(tiny_controlled, asked, max_rows=32)
    assert engine.tracker.total.unet_calls < 12  # 8 steps: one call for all of them, in every step
    return asked, tape


@pytest.mark.parametrize("kind", [*KINDS, "text 0", "text 3"])
def test_each_kind_in_a_crowd_of_others_is_the_picture_of_diffusers(
    crowd: tuple[list[Request], Tape], kind: str, tiny_controlled: LoadedModel, tiny_checkpoint: Path
) -> None:
    asked, tape = crowd
    wanted = next(request for request in asked if request.id == kind)
    assert difference(tape.images(kind)[0], reference_image(tiny_checkpoint, tiny_controlled, wanted)) <= 1


@pytest.mark.parametrize("sampler", ["heun", "kdpm2", "kdpm2_a"])
def test_samplers_of_two_evaluations_a_step_start_where_diffusers_does(
    sampler: str, tiny_controlled: LoadedModel, tiny_checkpoint: Path
) -> None:
    kinds = [kind for kind in KINDS if "image" in kind or "inpaint" in kind]
    asked = requests_of(tiny_controlled, kinds, sampler)
    tape, _ = run(tiny_controlled, asked)
    for request in asked:
        reference = reference_image(tiny_checkpoint, tiny_controlled, request)
        assert difference(tape.images(request.id)[0], reference) <= 1, request.id


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_inpainting_checkpoint_gives_the_pictures_of_diffusers(
    sampler: str, tiny_model_9: LoadedModel, tiny_checkpoint_9: Path
) -> None:
    asked = requests_of(tiny_model_9, NINE, sampler)
    tape, _ = run(tiny_model_9, asked)
    for request in asked:
        reference = reference_image(tiny_checkpoint_9, tiny_model_9, request)
        assert difference(tape.images(request.id)[0], reference) <= 1, request.id


def test_neighbours_of_other_kinds_do_not_change_a_bit_at_a_fixed_padded_size(tiny_controlled: LoadedModel) -> None:
    asked = requests_of(tiny_controlled, list(KINDS), "euler_a")
    together, _ = run(tiny_controlled, asked, max_rows=32, padded_sizes=(32,))
    for request in asked:
        alone, _ = run(tiny_controlled, [request], max_rows=32, padded_sizes=(32,))
        assert difference(together.images(request.id)[0], alone.images(request.id)[0]) == 0, request.id


@pytest.mark.parametrize(
    ("kind", "without"),
    [
        ("image-to-image", {"inputs": Inputs(image=picture(9))}),
        ("image-to-image", {"strength": 0.9}),
        ("inpaint, in part", {"inputs": Inputs(image=picture(2), mask=half_mask(0.3))}),
        ("controlnet", {"inputs": Inputs(hints=(picture(9),))}),
        ("controlnet", {"controls": (control("depth"),)}),
        ("controlnet", {"controls": (control("canny", scale=0.3),)}),
        ("controlnet", {"controls": (control("canny", end=0.3),)}),
        ("controlnet", {"guess_mode": True}),
        ("two controlnets", {"controls": (control("canny", scale=0.5), control("depth", scale=0.1))}),
    ],
)
def test_everything_that_is_asked_for_shows(kind: str, without: dict[str, Any], tiny_controlled: LoadedModel) -> None:
    inputs, asked = KINDS[kind]
    changed = {"inputs": inputs} | asked | without
    one = request_for(tiny_controlled, "one", inputs, prompt="a cup", **asked)
    other = request_for(tiny_controlled, "other", changed.pop("inputs"), prompt="a cup", **changed)
    tape, _ = run(tiny_controlled, [one, other])
    assert difference(tape.images("one")[0], tape.images("other")[0]) > 4


@pytest.mark.parametrize("feather", [0, 9])
def test_pixels_outside_the_mask_come_back_to_the_byte(feather: int, tiny_controlled: LoadedModel) -> None:
    ragged = (np.random.default_rng(0).uniform(0, 255, (SIDE, SIDE))).astype(np.uint8)
    ragged[20:44, 20:44] = 255
    inputs = Inputs(image=picture(2), mask=ragged)
    tape, _ = run(tiny_controlled, [request_for(tiny_controlled, "x", inputs, mask_feather=feather)])
    made = tape.images("x")[0]
    assert (made[ragged < 128] == picture(2)[ragged < 128]).all()
    assert (made[30:34, 30:34] != picture(2)[30:34, 30:34]).any()


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
@pytest.mark.parametrize("strength", [0.8, 1.0])
def test_a_cropped_mask_gives_the_picture_of_diffusers(
    sampler: str, strength: float, tiny_controlled: LoadedModel, tiny_checkpoint: Path
) -> None:
    image = np.kron(picture(6), np.ones((3, 2, 1), np.uint8))
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[40:90, 30:70] = 255
    inputs = crop_to_mask(image, mask, (SIDE, SIDE), 8)
    asked = request_for(tiny_controlled, "x", inputs, sampler=sampler, strength=strength, padding_mask_crop=8)
    tape, _ = run(tiny_controlled, [asked])
    reference = reference_image(tiny_checkpoint, tiny_controlled, asked)
    assert tape.images("x")[0].shape == image.shape
    assert difference(tape.images("x")[0], reference) <= 1


@pytest.mark.parametrize("fill", ["noise", "zero"])
def test_what_a_mask_is_filled_with_shows_inside_it_alone(fill: str, tiny_controlled: LoadedModel) -> None:
    inputs = Inputs(image=picture(2), mask=half_mask())
    plain = request_for(tiny_controlled, "x", inputs, strength=0.5)
    filled = request_for(tiny_controlled, "x", inputs, strength=0.5, mask_fill=fill)
    one, other = (run(tiny_controlled, [each])[0].images("x")[0] for each in (plain, filled))
    assert difference(one[:, : SIDE // 2], other[:, : SIDE // 2]) > 4
    assert difference(one[:, SIDE // 2 :], other[:, SIDE // 2 :]) == 0


@pytest.mark.parametrize("fit", ["cover", "pad"])
def test_the_finished_picture_has_the_size_that_is_asked_for(fit: str, tiny_controlled: LoadedModel) -> None:
    asked = request_for(tiny_controlled, "x", output_size=[150, 50], output_fit=fit)
    tape, _ = run(tiny_controlled, [asked, request_for(tiny_controlled, "plain", prompt="a picture of x")])
    (done,) = tape.of("x", ImageDone)
    made, plain = tape.images("x")[0], tape.images("plain")[0]
    assert (done.width, done.height) == (150, 50)
    assert made.shape == (50, 150, 3)
    wanted = np.asarray(resize(Image.fromarray(plain.astype(np.uint8)), 150, 50, "cover" if fit == "cover" else "pad"))
    assert difference(made, wanted.astype(np.int16)) == 0


def test_one_picture_is_encoded_once_whatever_is_asked_of_it(
    tiny_controlled: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    encode = tiny_controlled.vae.encode

    def count_calls(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return encode(*arguments)

    monkeypatch.setattr(tiny_controlled.vae, "encode", count_calls)
    inputs = Inputs(image=picture(77))
    run(tiny_controlled, [request_for(tiny_controlled, f"{i}", inputs, num_images=3, seed=i) for i in range(3)])
    assert calls == 1


def test_the_images_of_one_request_begin_from_draws_of_their_own(tiny_controlled: LoadedModel) -> None:
    request = request_for(tiny_controlled, "x", Inputs(image=picture(1)), num_images=2, strength=0.5)
    alone = request_for(tiny_controlled, "y", Inputs(image=picture(1)), prompt="a picture of x", seed=2, strength=0.5)
    tape, _ = run(tiny_controlled, [request, alone])
    first, second = tape.images("x")
    assert difference(first, second) > 4
    assert difference(second, tape.images("y")[0]) == 0


@pytest.mark.parametrize(
    ("field", "inputs", "asked"),
    [
        ("controlnet_type", Inputs(hints=(picture(3),)), {"controls": (control("pose"),)}),
        ("control_image", Inputs(), {"controls": (control("canny"),)}),
        ("control_image", Inputs(hints=(picture(3)[:32],)), {"controls": (control("canny"),)}),
        ("image", Inputs(image=picture(1)[:, :32]), {}),
        ("image", Inputs(mask=half_mask()), {}),
        ("mask", Inputs(image=picture(1), mask=half_mask()[:8]), {}),
        ("strength", Inputs(image=picture(1)), {"strength": 0.01}),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_field(
    field: str, inputs: Inputs, asked: dict[str, Any], tiny_controlled: LoadedModel
) -> None:
    tape, engine = run(tiny_controlled, [request_for(tiny_controlled, "x", inputs, **asked)])
    (refused,) = tape.of("x", Failed)
    assert getattr(refused.error, "field", None) == field
    assert engine.tracker.total.unet_calls == 0


def test_an_inpainting_checkpoint_refuses_what_it_never_learnt(tiny_model_9: LoadedModel) -> None:
    asked = [request_for(tiny_model_9, "text"), request_for(tiny_model_9, "image", Inputs(image=picture(1)))]
    tape, _ = run(tiny_model_9, asked)
    for request in asked:
        (refused,) = tape.of(request.id, Failed)
        assert getattr(refused.error, "field", None) == "model_name"


def test_a_picture_that_cannot_be_encoded_refuses_its_request_alone(
    tiny_controlled: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(tiny_controlled.vae, "encode", fails)
    asked = [request_for(tiny_controlled, "bad", Inputs(image=picture(123))), request_for(tiny_controlled, "good")]
    tape, _ = run(tiny_controlled, asked)
    assert isinstance(tape.of("bad", Failed)[0].error, GenerationFailed)
    assert len(tape.images("good")) == 1


def test_an_image_that_cannot_be_begun_fails_alone(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = begin_row

    def fails_for_bad(request_state: Any, index: int, model: LoadedModel) -> Any:
        if (request_state.request.id, index) == ("bad", 1):
            raise RuntimeError("injected")
        return begin(request_state, index, model)

    monkeypatch.setattr(engine_module, "begin_row", fails_for_bad)
    asked = [request_for(tiny_model, "bad", num_images=3), request_for(tiny_model, "good")]
    tape, _ = run(tiny_model, asked)
    (failed,) = tape.of("bad", ImageFailed)
    assert (failed.index, type(failed.error)) == (1, GenerationFailed)
    assert (len(tape.images("bad")), len(tape.images("good"))) == (2, 1)


def test_a_preview_that_fails_costs_nothing_else(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(previews_module, "predict_original", fails)
    tape, _ = run(tiny_model, [request_for(tiny_model, "x", previews=2)])
    assert len(tape.images("x")) == 1

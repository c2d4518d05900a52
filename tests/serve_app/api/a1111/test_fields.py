"""A1111's fields: each that it knows is honoured, or refused by its name, or known to change no picture here."""

from typing import Any, Final

import httpx
import pytest

from deployments.engine.protocol.spec import ModelSpec
from serve_app.api.a1111 import fields, units
from serve_app.api.a1111.fields import ImageToImageFields, TextToImageFields
from serve_app.api.a1111.units import UnitFields
from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.serve_app.api.a1111.test_replays import picture
from tests.serve_app.fakes import TINY, FakeBackend, http

# As web UI 1.10 declares them: the fields of its processing classes that its API lets through, and the API's own.
SHARED: Final = """prompt negative_prompt styles seed subseed subseed_strength seed_resize_from_h seed_resize_from_w
sampler_name sampler_index scheduler batch_size n_iter steps cfg_scale width height restore_faces tiling
do_not_save_samples do_not_save_grid eta denoising_strength s_min_uncond s_churn s_tmax s_tmin s_noise
override_settings override_settings_restore_afterwards refiner_checkpoint refiner_switch_at disable_extra_networks
firstpass_image comments script_name script_args send_images save_images alwayson_scripts force_task_id infotext"""
TEXT: Final = """enable_hr firstphase_width firstphase_height hr_scale hr_upscaler hr_second_pass_steps hr_resize_x
hr_resize_y hr_checkpoint_name hr_sampler_name hr_scheduler hr_prompt hr_negative_prompt"""
IMAGE: Final = """init_images resize_mode image_cfg_scale mask mask_blur mask_blur_x mask_blur_y mask_round
inpainting_fill inpaint_full_res inpaint_full_res_padding inpainting_mask_invert initial_noise_multiplier latent_mask
include_init_images"""

# As version 1.1.455 of the ControlNet extension declares them, and the names that it and webuiapi had before.
UNIT: Final = """is_ui input_mode batch_images output_dir loopback enabled module model weight image resize_mode
low_vram processor_res threshold_a threshold_b guidance_start guidance_end pixel_perfect control_mode
inpaint_crop_input_image hr_option save_detected_map advanced_weighting effective_region_mask pulid_mode
union_control_type ipadapter_input mask mask_image batch_image_files batch_keyframe_idx batch_modifiers
animatediff_batch use_preview_as_input generated_image lowvram guessmode guess_mode invert_image"""


@pytest.mark.parametrize(
    ("kind", "known", "without_effect"),
    [
        (TextToImageFields, f"{SHARED} {TEXT}", fields.WITHOUT_EFFECT),
        (ImageToImageFields, f"{SHARED} {IMAGE}", fields.WITHOUT_EFFECT),
        (UnitFields, UNIT, units.WITHOUT_EFFECT),
    ],
)
def test_no_field_that_is_known_there_is_left_over(kind: Any, known: str, without_effect: frozenset[str]) -> None:
    assert set(known.split()) - set(kind.model_fields) <= without_effect
    assert not without_effect & set(kind.model_fields)


@pytest.mark.parametrize(
    ("door", "field", "value"),
    [
        ("txt2img", "firstphase_width", 256),
        ("txt2img", "firstphase_height", 256),
        ("txt2img", "s_min_uncond", 0.5),
        ("txt2img", "disable_extra_networks", True),
        ("txt2img", "infotext", "a cup\nSteps: 3"),
        ("txt2img", "firstpass_image", "AAAA"),
        ("img2img", "latent_mask", "AAAA"),
        ("img2img", "mask_round", False),
        ("img2img", "initial_noise_multiplier", 0.9),
        ("img2img", "mask_blur_x", 9),
        ("img2img", "mask_blur_y", 9),
    ],
)
async def test_a_field_that_would_change_the_picture_is_refused_by_its_name(
    door: str, field: str, value: Any, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    images = {"init_images": [picture()], "mask": picture()} if door == "img2img" else {}
    body = {"prompt": "a cup", "width": 64, "height": 64, **images}
    answer = await client.post(f"/sdapi/v1/{door}", json=body | {field: value})
    assert answer.status_code == 422, answer.text
    assert field in str(answer.json()["errors"])
    assert not backend.asked


@pytest.mark.parametrize(
    ("given", "feather"),
    [
        ({}, 8),
        ({"mask_blur_x": 3, "mask_blur_y": 3}, 6),
        ({"mask_blur": 5, "mask_blur_x": 3, "mask_blur_y": 9}, 10),
        ({"mask_blur": None, "mask_blur_x": 0, "mask_blur_y": 0}, 0),
    ],
)
async def test_a_blur_may_come_by_any_of_its_names(
    given: dict[str, Any], feather: int, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {"prompt": "a cup", "init_images": [picture()], "mask": picture(), "width": 64, "height": 64}
    answer = await client.post("/sdapi/v1/img2img", json=body | given)
    assert answer.status_code == 200, answer.text
    assert backend.asked[0].params.mask_feather == feather


@pytest.mark.parametrize(
    "more",
    [
        {"mask": "AAAA"},
        {"mask_image": "AAAA"},
        {"effective_region_mask": "AAAA"},
        {"image": {"image": picture(), "mask": picture()}},
        {"hr_option": "Low res only"},
        {"hr_option": 2},
        {"advanced_weighting": [0.5] * 13},
        {"ipadapter_input": ["AAAA"]},
        {"input_mode": "batch"},
        {"batch_images": "folder"},
        {"animatediff_batch": True},
        {"guessmode": True},
        {"invert_image": True},
    ],
)
async def test_what_a_unit_cannot_have_is_refused_by_its_name(
    more: dict[str, Any], client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    unit = {"image": picture(), "module": "canny", "model": "canny"} | more
    body = {"prompt": "a cup", "width": 64, "height": 64, "alwayson_scripts": {"ControlNet": {"args": [unit]}}}
    answer = await client.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 422, answer.text
    assert next(iter(more)) in answer.json()["errors"][0]["pointer"]
    assert not backend.asked


def test_what_says_nothing_is_taken() -> None:
    assert UnitFields.model_validate({"image": {"image": "AAAA", "mask": None}}).picture == "AAAA"
    for option in ("Both", "HiResFixOption.BOTH", 0):
        UnitFields.model_validate({"hr_option": option, "input_mode": "simple", "advanced_weighting": None, "mask": ""})


def test_a_unit_is_cropped_unless_it_says_otherwise() -> None:
    assert UnitFields().fit == "cover"
    assert UnitFields(resize_mode="Resize and Fill").fit == "pad"


async def test_a_size_is_fitted_to_the_model_whose_controlnet_is_taken() -> None:
    plain = ModelSpec("plain", "weights", native_size=64, max_pixels=1024 * 1024)
    small = ModelSpec("followed", "weights", native_size=64, max_pixels=128 * 128, controlnets={"canny": "nowhere"})
    backend = FakeBackend(models=(plain, small, TINY))
    unit = {"image": picture(), "module": "canny"}
    body = {"prompt": "a cup", "width": 512, "height": 512, "alwayson_scripts": {"ControlNet": {"args": [unit]}}}
    async with http(create_api(DiffusionService(backend))) as client:
        answer = await client.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    params = backend.asked[0].params
    assert (params.model_name, params.width, params.height) == ("followed", 64, 64)

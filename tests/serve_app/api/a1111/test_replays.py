"""The exact calls of programs that speak A1111's language, as their sources have them: each finds what it reads."""

import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.config.sections import CacheConfig
from serve_app.service import DiffusionService
from tests.serve_app.fakes import FakeBackend, http

CUP = "a red cup"


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(DiffusionService(backend, cache=ResultCache(CacheConfig(enabled=False))))
    async with http(app) as client:
        yield client
    await app.state.jobs.stop()


async def get(client: httpx.AsyncClient, path: str) -> Any:
    answer = await client.get(f"/sdapi/v1/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def post(client: httpx.AsyncClient, path: str, body: Any) -> Any:
    answer = await client.post(f"/sdapi/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def size_of(text: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
        return picture.size


def picture(width: int = 64, height: int = 64) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


async def test_open_webui_chooses_a_model_and_makes_a_picture(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    options = await get(client, "options")
    models = await get(client, "sd-models")
    assert [(model["title"], model["model_name"]) for model in models] == [("tiny", "tiny"), ("other", "other")]
    # The whole object comes back, with one name changed.
    await post(client, "options", {**options, "sd_model_checkpoint": models[1]["title"]})
    assert (await get(client, "options"))["sd_model_checkpoint"] == "other"
    body = {"prompt": CUP, "batch_size": 1, "width": 512, "height": 512, "steps": 30, "negative_prompt": "blur"}
    made = await post(client, "txt2img", body)
    assert size_of(made["images"][0]) == (512, 512)
    assert json.loads(made["info"])["prompt"] == CUP
    assert backend.asked[0].params.model_name == "other"


async def test_librechat_asks_for_what_no_sd15_makes_and_reads_the_infotext(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {
        "prompt": CUP,
        "negative_prompt": "blur",
        "cfg_scale": 4.5,
        "steps": 22,
        "width": 1024,
        "height": 1024,
    }
    made = await post(client, "txt2img", body)
    info = json.loads(made["info"])
    assert size_of(made["images"][0]) == (info["width"], info["height"]) == (1024, 1024)
    assert info["infotexts"][0].startswith(f"{CUP}\nNegative prompt: blur\nSteps: 22,")
    assert info["seed"] == backend.asked[0].params.seed


async def test_sillytavern_looks_around_and_sends_all_it_has(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert "forge_preset" not in await get(client, "options")
    assert all("name" in each for each in await get(client, "samplers"))
    assert all("name" in each for each in await get(client, "schedulers"))
    assert (await get(client, "upscalers"))[0]["name"] == "None"
    assert isinstance(await get(client, "latent-upscale-modes"), list)
    assert await get(client, "sd-vae") == []
    assert all("title" in each for each in await get(client, "sd-models"))
    progress = await get(client, "progress")
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
    body = {
        "url": "http://127.0.0.1:7860",
        "auth": "user:password",
        "prompt": CUP,
        "negative_prompt": "",
        "sampler_name": "DPM++ 2M",
        "scheduler": "Karras",
        "steps": 20,
        "cfg_scale": 7,
        "width": 512,
        "height": 512,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "None",
        "hr_scale": 1,
        "hr_additional_modules": [],
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "seed": -1,
        "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": "Automatic"},
        "override_settings_restore_afterwards": True,
        "clip_skip": 2,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    made = await post(client, "txt2img", body)
    assert len(made["images"]) == 1
    params = backend.asked[0].params
    assert (params.sampler, params.clip_skip) == ("dpmpp_2m_karras", 1)
    # It interrupts whenever its own user closes the page, whether anything runs or not.
    assert await post(client, "interrupt", {}) == {}


async def test_the_photoshop_plug_in_fills_its_menus_and_repaints(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    components = (await client.get("/config")).json()["components"]
    found = {component["props"]["elem_id"]: component["props"] for component in components}
    assert "Lanczos" in found["txt2img_hr_upscaler"]["choices"]
    assert found["setting_control_net_max_models_num"]["value"] == 4
    assert next(each for each in found.values() if each["label"] == "Preprocessor")["choices"][0] == "none"
    assert (await client.get("/controlnet/model_list")).json()["model_list"] == ["canny", "depth"]
    await post(client, "options", {"sd_model_checkpoint": "tiny"})
    await post(client, "options", {"inpainting_mask_weight": 1.0})
    assert (await client.get("/sdapi/v1/progress?skip_current_image=false")).json()["progress"] == 0
    body = {
        "prompt": CUP,
        "negative_prompt": "",
        "steps": 20,
        "n_iter": 1,
        "sampler_index": "Euler a",
        "width": 64,
        "height": 64,
        "cfg_scale": 7,
        "seed": -1,
        "init_images": [f"data:image/png;base64,{picture(128, 128)}"],
        "mask": f"data:image/png;base64,{picture(128, 128)}",
        "denoising_strength": 0.6,
        "inpainting_fill": 1,
        "inpaint_full_res": False,
        "mask_blur": 0,
        "batch_size": 2,
        "alwayson_scripts": {},
        "uniqueDocumentId": "a-b-c",
        "use_prompt_shortcut": False,
    }
    made = await post(client, "img2img", body)
    assert len(made["images"]) == 2
    assert backend.asked[0].params.mask_fill == "original"
    # Sent as JSON, with nothing in it.
    answer = await client.post("/sdapi/v1/interrupt", headers={"Content-Type": "application/json"})
    assert answer.json() == {}
    enlarged = await post(client, "extra-single-image", {"image": made["images"][0], "upscaler_1": "Lanczos"})
    assert size_of(enlarged["image"]) == (128, 128)

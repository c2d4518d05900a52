"""The `webuiapi` package, unmodified and over real HTTP: all of its calls that have a meaning here."""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import webuiapi
import yaml
from PIL import Image

from deployments.annotators.catalogue import NO_NETWORKS, Annotators
from deployments.engine.protocol.events import Accepted, Preview, Progress
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import UpscalerSpec
from deployments.loras.catalogue import LoraCatalogue
from deployments.uploads.intake import decode_uploads
from serve_app.api.application import create_api
from serve_app.config.secret import Secret
from serve_app.gateway.api_keys import Keyring, generate_key, hash_of
from serve_app.gateway.setup import Gateway
from serve_app.service import DiffusionService
from tests.deployments.loras.files import write_lora
from tests.serve_app.fakes import FOREVER, FakeBackend, Step, image
from tests.serve_app.servers import http_server

CUP = "a red cup"
NETWORK = "4x tiny"
PHOTO = Image.new("RGB", (64, 96), "teal")
MASK = Image.new("L", (64, 96), 0)
MASK.paste(255, (16, 16, 48, 48))


@pytest.fixture
def url(service: DiffusionService) -> Iterator[str]:
    with http_server(create_api(service)) as url:
        yield url


@pytest.fixture
def client(url: str) -> webuiapi.WebUIApi:
    return client_of(url)


def client_of(url: str, **options: Any) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1", **options)


def uploads_of(backend: FakeBackend) -> Uploads:
    uploads = backend.asked[-1].uploads
    assert uploads is not None
    return uploads


def eventually(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def half_done(request: Request) -> list[Step]:
    """The first image, a preview of the second, and no end."""
    buffer = io.BytesIO()
    PHOTO.save(buffer, "JPEG")
    return [
        Accepted(request.id, 0, steps=50, seconds_to_finish=8.0),
        image(request, 0),
        Progress(request.id, 20, 50, seconds_left=3.0),
        Preview(request.id, 1, 20, buffer.getvalue()),
        FOREVER,
    ]


def test_a_picture_is_made_with_the_clients_own_defaults(client: webuiapi.WebUIApi, backend: FakeBackend) -> None:
    made = client.txt2img(prompt=CUP, negative_prompt="blur", seed=7, batch_size=2, n_iter=2)
    assert [picture.size for picture in made.images] == [(512, 512)] * 4
    asked = backend.asked[-1].params
    # The client's own: 20 steps, cfg 7, "Euler a".
    assert (asked.prompt, asked.negative_prompt, asked.seed, asked.num_images) == (CUP, "blur", 7, 4)
    assert (asked.num_inference_steps, asked.guidance_scale, asked.sampler) == (20, 7.0, "euler_a")
    assert made.info["all_seeds"] == [7, 8, 9, 10]
    assert made.info["sampler_name"] == "Euler a"
    assert made.info["infotexts"][1].splitlines()[-1].startswith("Steps: 20, Sampler: Euler a,")
    assert made.parameters["prompt"] == CUP
    assert "init_images" not in made.parameters


@pytest.mark.parametrize(
    ("named", "scheduler", "sampler"),
    [
        ("Euler a", "automatic", "euler_a"),
        ("DPM++ 2M", "automatic", "dpmpp_2m_karras"),
        ("DPM++ 2M", "uniform", "dpmpp_2m"),
        ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
        ("DPM++ 2M Karras", None, "dpmpp_2m_karras"),
        ("DDIM", None, "ddim"),
        ("LMS", "karras", "lms_karras"),
        ("DPM++ 2M SDE", "uniform", "dpmpp_2m_sde"),
        ("DPM++ 2M SDE", "karras", "dpmpp_2m_sde_karras"),
        ("DPM++ 2M SDE Karras", "automatic", "dpmpp_2m_sde_karras"),
        ("DPM++ 3M SDE", "uniform", "dpmpp_3m_sde"),
    ],
)
def test_samplers_and_schedulers_mean_what_they_mean_there(
    named: str, scheduler: str | None, sampler: str, client: webuiapi.WebUIApi, backend: FakeBackend
) -> None:
    client.txt2img(prompt=CUP, sampler_name=named, scheduler=scheduler)
    assert backend.asked[-1].params.sampler == sampler


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"sampler_name": "Restart"}, "sampler_name"),
        ({"sampler_name": "Euler a", "scheduler": "karras"}, "scheduler"),
        ({"sampler_name": "Euler", "scheduler": "beta"}, "scheduler"),
        # What is meant there is exponential.
        ({"sampler_name": "DPM++ 2M SDE", "scheduler": "automatic"}, "scheduler"),
        ({"sampler_name": "DPM++ 2M SDE", "scheduler": None}, "scheduler"),
        ({"sampler_name": "DPM++ 3M SDE"}, "scheduler"),
        ({"prompt": "a [cat:dog:0.5]"}, "prompt"),
        ({"prompt": "a cat AND a dog"}, "prompt"),
        ({"negative_prompt": "[blur|noise]"}, "negative_prompt"),
        ({"steps": 10_000}, "steps"),
        ({"cfg_scale": -1}, "cfg_scale"),
        ({"batch_size": 9, "n_iter": 9}, "n_iter x batch_size"),
        ({"restore_faces": True}, "restore_faces"),
        ({"tiling": True}, "tiling"),
        ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "hr_upscaler"),
        ({"enable_hr": True, "hr_prompt": "another"}, "hr_prompt"),
        ({"enable_hr": True, "hr_resize_x": 600, "hr_resize_y": 1024}, "hr_resize_y"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"styles": ["nowhere"]}, "styles"),
        ({"prompt": f"{CUP} <lora:shoe:0.8>"}, "prompt"),
        ({"prompt": f"{CUP} <lora:shoe:0.8:0.2>"}, "prompt"),
        ({"prompt": f"{CUP} <hypernet:shoe:1>"}, "prompt"),
        ({"negative_prompt": "<lora:shoe:0.8>"}, "negative_prompt"),
        ({"override_settings": {"sd_model_checkpoint": "nowhere"}}, "override_settings/sd_model_checkpoint"),
        ({"override_settings": {"sd_vae": "better.vae"}}, "override_settings/sd_vae"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {"ad_model": "face"}]}}}, "alwayson_scripts"),
    ],
)
def test_what_is_not_there_is_refused_by_its_name(
    fields: dict[str, Any], field: str, client: webuiapi.WebUIApi, backend: FakeBackend
) -> None:
    with pytest.raises(RuntimeError) as refused:
        client.txt2img(**({"prompt": CUP} | fields))
    status, text = refused.value.args
    assert status in (404, 422)
    body = json.loads(text)
    assert body["errors"][0]["pointer"].removeprefix("#/") == field or field in body["detail"]
    assert not backend.asked


def test_a_size_that_the_model_cannot_make_comes_in_its_shape_at_the_native_area(
    client: webuiapi.WebUIApi, backend: FakeBackend
) -> None:
    client.txt2img(prompt=CUP, width=2048, height=1024)
    params = backend.asked[-1].params
    # The model was trained for 64 x 64.
    assert (params.width, params.height) == (88, 64)
    client.txt2img(prompt=CUP, width=515, height=1023)
    params = backend.asked[-1].params
    assert (params.width, params.height) == (512, 1016)


def test_hires_fix_is_a_second_pass(client: webuiapi.WebUIApi, backend: FakeBackend) -> None:
    client.txt2img(prompt=CUP, enable_hr=True, hr_scale=1.5, denoising_strength=0.5, hr_second_pass_steps=9)
    hires = backend.asked[-1].params.hires
    assert hires is not None
    # Nine are made, of a schedule of eighteen.
    assert (hires.scale, hires.upscaler, hires.strength, hires.steps) == (1.5, "latent", 0.5, 18)
    size = {"width": 512, "height": 256, "hr_resize_x": 1024, "hr_resize_y": 512}
    client.txt2img(prompt=CUP, enable_hr=True, hr_upscaler=webuiapi.HiResUpscaler.Lanczos, **size)
    hires = backend.asked[-1].params.hires
    assert hires is not None
    # Twenty, as in the first pass: the client's strength is 0.7.
    assert (hires.scale, hires.upscaler, hires.steps) == (2.0, "lanczos", 29)
    # The model makes 1024 x 1024 at most.
    client.txt2img(prompt=CUP, enable_hr=True, width=768, height=768)
    hires = backend.asked[-1].params.hires
    assert hires is not None
    assert hires.enlarge(768) == 1024
    client.txt2img(prompt=CUP, enable_hr=True, width=1024, height=1024)
    assert backend.asked[-1].params.hires is None


def test_an_image_is_changed(client: webuiapi.WebUIApi, backend: FakeBackend) -> None:
    client.img2img(images=[PHOTO], prompt=CUP, denoising_strength=0.4, resize_mode=2, width=64, height=96)
    params, uploads = backend.asked[-1].params, uploads_of(backend)
    assert (params.strength, params.width, params.height) == (0.4, 64, 96)
    assert (uploads.task, uploads.fit) == ("image-to-image", "pad")
    assert uploads.image is not None
    with Image.open(io.BytesIO(uploads.image)) as sent:
        assert sent.size == PHOTO.size


def test_an_image_is_repainted_where_its_mask_is_white(client: webuiapi.WebUIApi, backend: FakeBackend) -> None:
    client.img2img(images=[PHOTO], mask_image=MASK, prompt=CUP, mask_blur=3, inpaint_full_res_padding=12)
    params = backend.asked[-1].params
    assert (params.mask_feather, params.mask_fill, params.padding_mask_crop) == (6, "surroundings", 12)
    assert not params.mask_inverted
    assert uploads_of(backend).task == "inpaint"
    client.img2img(
        images=[PHOTO],
        mask_image=MASK,
        prompt=CUP,
        inpaint_full_res=False,
        inpainting_fill=2,
        inpainting_mask_invert=1,
    )
    params = backend.asked[-1].params
    assert (params.mask_fill, params.mask_inverted, params.padding_mask_crop) == ("noise", True, None)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 90)])
def test_where_a_mask_is_visible_is_repainted_whatever_its_colour(
    colour: tuple[int, int, int], client: webuiapi.WebUIApi, backend: FakeBackend
) -> None:
    mask = Image.new("RGBA", PHOTO.size, (*colour, 255))
    for left, meaning in ((0, None), (32, "strokes")):
        mask.paste((255, 255, 255, 0), (0, 0, left, PHOTO.height))
        client.img2img(images=[PHOTO], mask_image=mask, prompt=CUP, inpaint_full_res=False, width=64, height=96)
        assert uploads_of(backend).mask_alpha == meaning
    decoded = decode_uploads(backend.asked[-1], Annotators(NO_NETWORKS, "cpu"))
    assert decoded.inputs.mask is not None
    assert (decoded.inputs.mask[:, :30] == 0).all()
    assert (decoded.inputs.mask[:, 34:] == 255).all()


def test_controlnets_come_as_units(client: webuiapi.WebUIApi, backend: FakeBackend) -> None:
    assert client.has_controlnet
    units = [
        webuiapi.ControlNetUnit(image=PHOTO, module="canny", model="control_v11p_sd15_canny [d14c016b]", weight=0.8),
        webuiapi.ControlNetUnit(image=PHOTO, module="none", model="depth", guidance_start=0.1, guidance_end=0.6),
        webuiapi.ControlNetUnit(image=PHOTO, module="pose", enabled=False),
    ]
    client.txt2img(prompt=CUP, controlnet_units=units)
    canny, depth = backend.asked[-1].params.controls
    assert (canny.type, canny.scale, canny.preprocess) == ("canny", 0.8, True)
    assert (depth.type, depth.start, depth.end, depth.preprocess) == ("depth", 0.1, 0.6, False)
    assert len(uploads_of(backend).hints) == 2
    assert uploads_of(backend).fit == "pad"
    # Without an image of its own, a unit follows the image that is changed.
    client.img2img(images=[PHOTO], prompt=CUP, controlnet_units=[webuiapi.ControlNetUnit(module="canny")])
    uploads = uploads_of(backend)
    assert uploads.hints == (uploads.image,)
    client.txt2img(prompt=CUP, controlnet_units=[webuiapi.ControlNetUnit(PHOTO, module="canny", control_mode=2)])
    assert backend.asked[-1].params.guess_mode


def test_scripts_that_are_switched_off_and_older_names_are_understood(url: str, backend: FakeBackend) -> None:
    unit = {"input_image": base64.b64encode(photo_file()).decode(), "module": "canny", "model": "canny"}
    scripts = {"Tiled": {"args": [False, *range(11)]}, "controlnet": {"args": [unit]}}
    answer = httpx.post(f"{url}/sdapi/v1/txt2img", json={"prompt": CUP, "alwayson_scripts": scripts})
    assert answer.status_code == 200, answer.text
    assert uploads_of(backend).hints == (photo_file(),)


def photo_file() -> bytes:
    buffer = io.BytesIO()
    PHOTO.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "unit",
    [
        webuiapi.ControlNetUnit(image=PHOTO, module="lineart"),
        webuiapi.ControlNetUnit(image=PHOTO, module="depth", model="canny"),
        webuiapi.ControlNetUnit(image=PHOTO, module="canny", control_mode=1),
        webuiapi.ControlNetUnit(image=PHOTO, module="canny", weight=5),
        webuiapi.ControlNetUnit(image=PHOTO, module="canny", guidance_start=0.9, guidance_end=0.1),
        webuiapi.ControlNetUnit(module="canny"),
        webuiapi.ControlNetUnit(image=PHOTO, mask=MASK, module="canny"),
    ],
)
def test_units_that_cannot_be_followed_are_refused(
    unit: webuiapi.ControlNetUnit, client: webuiapi.WebUIApi, backend: FakeBackend
) -> None:
    with pytest.raises(RuntimeError, match="alwayson_scripts"):
        client.txt2img(prompt=CUP, controlnet_units=[unit])
    assert not backend.asked


def test_progress_shows_the_picture_and_an_interrupt_leaves_what_is_done(
    client: webuiapi.WebUIApi, url: str, backend: FakeBackend
) -> None:
    assert client.get_progress()["state"]["job_count"] == 0
    backend.script = half_done
    answers: list[webuiapi.WebUIApiResult] = []
    working = threading.Thread(target=lambda: answers.append(client_of(url).txt2img(prompt=CUP, batch_size=3, seed=5)))
    working.start()
    eventually(lambda: client.get_progress()["state"]["sampling_step"] == 20)
    progress = client.get_progress()
    assert progress["progress"] == pytest.approx(0.4)
    assert progress["eta_relative"] == pytest.approx(3.0)
    assert progress["state"]["job_count"] == 1
    with Image.open(io.BytesIO(base64.b64decode(progress["current_image"]))) as preview:
        assert preview.size == PHOTO.size
    assert client.custom_get("progress?skip_current_image=true", baseurl=True)["current_image"] is None
    client.interrupt()
    working.join(5)
    assert len(answers[0].images) == 1
    assert answers[0].info["all_seeds"] == [5]
    assert backend.running == 0
    client.util_wait_for_ready(check_interval=0.01)


def test_previews_are_made_for_those_who_look(client: webuiapi.WebUIApi, backend: FakeBackend) -> None:
    client.txt2img(prompt=CUP)
    client.custom_get("progress?skip_current_image=true", baseurl=True)
    client.txt2img(prompt=CUP)
    client.get_progress()
    client.txt2img(prompt=CUP)
    client.set_options({"live_previews_enable": False})
    client.txt2img(prompt=CUP)
    assert [request.previews for request in backend.asked] == [0, 0, 3, 0]


def test_a_request_that_is_interrupted_before_its_first_image_has_none(
    client: webuiapi.WebUIApi, url: str, backend: FakeBackend
) -> None:
    backend.script = lambda request: [Accepted(request.id, 0, steps=50), FOREVER]
    answers: list[webuiapi.WebUIApiResult] = []
    working = threading.Thread(target=lambda: answers.append(client_of(url).txt2img(prompt=CUP)))
    working.start()
    eventually(lambda: client.get_progress()["state"]["job_count"] == 1)
    client.skip()
    working.join(5)
    assert answers[0].images == []


def test_options_are_the_callers_own(service: DiffusionService, backend: FakeBackend, tmp_path: Path) -> None:
    one, other = generate_key(), generate_key()
    keys = [{"id": name, "hash": hash_of(key), "tenant": "acme"} for name, key in (("one", one), ("other", other))]
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump(keys))
    with http_server(create_api(service, gateway=Gateway(keys=Keyring(Secret(file=file))))) as url:
        first, second = (client_of(url, username="anybody", password=key) for key in (one, other))
        assert first.util_get_current_model() == "tiny"
        first.util_set_model("othr")
        assert (first.util_get_current_model(), second.util_get_current_model()) == ("other", "tiny")
        # Open WebUI sends all of them back.
        first.set_options({**first.get_options(), "CLIP_stop_at_last_layers": 2, "outdir_samples": "/tmp"})
        first.txt2img(prompt=CUP)
        assert (backend.asked[-1].params.model_name, backend.asked[-1].params.clip_skip) == ("other", 1)
        second.txt2img(prompt=CUP, override_settings={"sd_model_checkpoint": "other", "CLIP_stop_at_last_layers": 3})
        assert (backend.asked[-1].params.model_name, backend.asked[-1].params.clip_skip) == ("other", 2)
        assert second.util_get_current_model() == "tiny"
        second.txt2img(
            prompt=CUP, override_settings={"sd_model_checkpoint": "other"}, override_settings_restore_afterwards=False
        )
        assert second.util_get_current_model() == "other"
        backend.script = half_done
        threading.Thread(target=lambda: first.txt2img(prompt=CUP), daemon=True).start()
        eventually(lambda: first.get_progress()["state"]["job_count"] == 1)
        assert second.get_progress()["state"]["job_count"] == 0
        second.interrupt()
        assert first.get_progress()["state"]["job_count"] == 1
        first.interrupt()


def test_a_model_that_is_gone_from_the_configuration_is_no_callers_model_any_more(
    service: DiffusionService, backend: FakeBackend
) -> None:
    with http_server(create_api(service)) as url:
        client = client_of(url)
        client.set_options({"sd_model_checkpoint": "other"})
        backend.models = (backend.models[0],)
        assert client.util_get_current_model() == "tiny"
        client.set_options({"samples_format": "webp"})
        client.txt2img(prompt=CUP)
        assert backend.asked[-1].params.model_name == "tiny"
        with pytest.raises(RuntimeError, match="no such model"):
            client.txt2img(prompt=CUP, override_settings={"sd_model_checkpoint": "other"})


def test_tags_in_prompts_switch_loras_on(backend: FakeBackend, tmp_path: Path) -> None:
    for name in ("coffee", "a shoe"):
        write_lora(tmp_path / f"{name}.safetensors")
    with http_server(create_api(DiffusionService(backend, loras=LoraCatalogue(folder=tmp_path)))) as url:
        client = client_of(url)
        assert [each["name"] for each in client.get_loras()] == ["a shoe", "coffee"]
        made = client.txt2img(prompt=f"{CUP}<lora:coffee:0.8>, <lora:a shoe:1>", seed=7)
        request = backend.asked[-1]
        assert request.params.prompt == f"{CUP}, "
        assert [(use.file.name, use.scale) for use in request.loras] == [("coffee", 0.8), ("a shoe", 1.0)]
        assert "<lora:coffee:0.8> <lora:a shoe:1>" in made.info["infotexts"][0]
        assert made.info["prompt"] == f"{CUP},  <lora:coffee:0.8> <lora:a shoe:1>"
        with pytest.raises(RuntimeError, match="did you mean coffee"):
            client.txt2img(prompt="<lora:cofee:1>")


def test_every_list_that_the_client_asks_for_is_there(client: webuiapi.WebUIApi) -> None:
    assert "Euler a" in client.util_get_sampler_names()
    assert "karras" in client.util_get_scheduler_names()
    assert client.util_get_model_names() == ["other", "tiny"]
    assert client.get_upscalers()[0]["name"] == "None"
    assert "luxury" in [each["name"] for each in client.get_prompt_styles()]
    lists = (
        client.get_sd_vae,
        client.get_loras,
        client.get_hypernetworks,
        client.get_face_restorers,
        client.get_realesrgan_models,
    )
    assert all(ask() == [] for ask in lists)
    assert client.get_latent_upscale_modes() == [{"name": "Latent"}]
    assert client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert client.get_cmd_flags()["api"] is True
    assert client.get_memory()["ram"]["total"] > 0
    assert client.refresh_checkpoints() == {}
    assert client.controlnet_version() == 3
    assert client.controlnet_model_list() == ["canny", "depth"]
    assert client.controlnet_module_list() == ["none", "canny", "depth"]


def test_without_an_upscaler_a_picture_stays_as_it_is(client: webuiapi.WebUIApi, url: str) -> None:
    assert client.extra_single_image(PHOTO).image.size == PHOTO.size
    to_size = {"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 80}
    assert client.extra_single_image(PHOTO, **to_size).image.size == PHOTO.size
    second = {"upscaler_1": "None", "upscaler_2": "Lanczos", "extras_upscaler_2_visibility": 1}
    assert [each.size for each in client.extra_batch_images([PHOTO] * 2, **second).images] == [PHOTO.size] * 2
    body = {"image": base64.b64encode(photo_file()).decode()}
    answer = httpx.post(f"{url}/sdapi/v1/extra-single-image", json=body)
    assert base64.b64decode(answer.json()["image"]) == photo_file()
    broken = httpx.post(f"{url}/sdapi/v1/extra-single-image", json={"image": "AAAA"})
    assert (broken.status_code, broken.json()["errors"][0]["pointer"]) == (422, "#/image")


def test_finished_pictures_are_enlarged(client: webuiapi.WebUIApi) -> None:
    assert client.extra_single_image(PHOTO, upscaling_resize=2, upscaler_1="Lanczos").image.size == (128, 192)
    to_size = {"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 80, "upscaler_1": "Lanczos"}
    assert client.extra_single_image(PHOTO, **to_size).image.size == (100, 80)
    assert client.extra_single_image(PHOTO, **to_size, upscaling_crop=False).image.size == (100, 150)
    both = client.extra_batch_images([PHOTO, PHOTO], upscaling_resize=1.5, upscaler_1="Lanczos")
    assert [picture.size for picture in both.images] == [(96, 144)] * 2
    mixed = {"upscaler_1": "Lanczos", "upscaler_2": "Lanczos", "extras_upscaler_2_visibility": 0.5}
    assert client.extra_single_image(PHOTO, **mixed).image.getpixel((5, 5)) == PHOTO.getpixel((5, 5))
    with pytest.raises(RuntimeError, match="upscaler_1"):
        client.extra_single_image(PHOTO, upscaler_1="R-ESRGAN 4x+")
    with pytest.raises(RuntimeError, match="upscaling_resize"):
        client.extra_single_image(Image.new("RGB", (4000, 4000)), upscaling_resize=4, upscaler_1="Lanczos")
    large = {"resize_mode": 1, "upscaling_resize_w": 4096, "upscaling_resize_h": 3000, "upscaler_1": "Lanczos"}
    with pytest.raises(RuntimeError, match="in all"):
        client.extra_batch_images([PHOTO, PHOTO], **large)


@pytest.fixture
def upscaling(backend: FakeBackend) -> Iterator[webuiapi.WebUIApi]:
    """A client of a server with an upscaler of its own."""
    with http_server(create_api(DiffusionService(backend, upscalers=[UpscalerSpec(NETWORK, "nowhere")]))) as url:
        yield client_of(url)


def test_networks_enlarge_under_their_own_names(upscaling: webuiapi.WebUIApi, backend: FakeBackend) -> None:
    assert NETWORK in [each["name"] for each in upscaling.get_upscalers()]
    made = upscaling.extra_single_image(PHOTO, upscaling_resize=4, upscaler_1=NETWORK).image
    assert made.size == (PHOTO.width * 4, PHOTO.height * 4)
    assert made.getpixel((5, 5)) == (0, 200, 0)
    assert [(each.upscaler, each.size) for each in backend.enlarged] == [(NETWORK, made.size)]
    mixed = {"upscaler_1": NETWORK, "upscaler_2": "Lanczos", "extras_upscaler_2_visibility": 0.5}
    half = upscaling.extra_batch_images([PHOTO, PHOTO], upscaling_resize=2, **mixed).images[1]
    # Between the green of the network and teal.
    assert half.getpixel((5, 5)) == (0, 164, 64)
    upscaling.txt2img(prompt=CUP, enable_hr=True, hr_upscaler=NETWORK, width=128, height=128)
    hires = backend.asked[-1].params.hires
    assert hires is not None
    assert hires.upscaler == NETWORK


def test_a_picture_tells_how_it_was_made(client: webuiapi.WebUIApi) -> None:
    made = client.txt2img(prompt=CUP, negative_prompt="blur", seed=7, steps=9)
    told = client.png_info(made.image)
    assert told.info == made.info["infotexts"][0]
    assert told.parameters["Prompt"] == CUP
    assert (told.parameters["Seed"], told.parameters["Steps"]) == ("7", "9")
    assert client.png_info(PHOTO).info == ""


def test_hints_are_made_from_photos(client: webuiapi.WebUIApi, backend: FakeBackend) -> None:
    made = client.controlnet_detect([PHOTO, PHOTO], module="canny")
    assert len(made.images) == 2
    with pytest.raises(RuntimeError, match="controlnet_module"):
        client.controlnet_detect([PHOTO], module="lineart")


def test_the_clients_calls_can_be_awaited(url: str, backend: FakeBackend) -> None:
    async def make_two() -> list[webuiapi.WebUIApiResult]:
        client = client_of(url)
        return list(await asyncio.gather(*(client.txt2img(prompt=CUP, seed=i, use_async=True) for i in (1, 2))))

    assert [made.info["seed"] for made in asyncio.run(make_two())] == [1, 2]
    assert {request.params.seed for request in backend.asked} == {1, 2}

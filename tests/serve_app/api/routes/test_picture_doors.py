"""The endpoints that take uploads: what reaches the backend, and what is refused before it does."""

import asyncio
import io
import json
from typing import Any, Final

import httpx
import pytest
from PIL import Image

from deployments.engine.protocol.inputs import Uploads
from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.serve_app.fakes import EVENTS, FakeBackend, http

BASE: Final = "/ads/v2/diffusion"
CUP: Final = {"prompt": "a red cup"}
CANNY: Final = CUP | {"controlnet_type": "canny"}


def file_of(width: int = 96, height: int = 64, kind: str = "PNG", colour: str = "white") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, kind)
    return buffer.getvalue()


PICTURE: Final = file_of()
CANNY_CONTROL: Final = {"type": "canny", "scale": 1.0, "start": 0.0, "end": 1.0, "preprocess": False}


async def ask(
    client: httpx.AsyncClient, door: str, files: dict[str, Any] | list[Any], fields: dict[str, Any] | None = None
) -> httpx.Response:
    return await client.post(f"{BASE}/{door}", files=files, data=CUP if fields is None else fields)


def uploads_of(backend: FakeBackend) -> Uploads:
    (request,) = backend.asked
    assert request.uploads is not None
    return request.uploads


async def test_the_guides_image_to_image_reaches_the_backend(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    fields = {
        "prompt": "Transform into professional advertisement",
        "negative_prompt": "blurry, amateur",
        "width": "512",
        "height": "512",
        "guidance_scale": "7.5",
        "strength": "0.8",
    }
    answer = await ask(client, "image-to-image", {"init_image": PICTURE}, fields)
    assert answer.status_code == 200, answer.text
    assert uploads_of(backend) != Uploads()
    assert (uploads_of(backend).image, uploads_of(backend).task) == (PICTURE, "image-to-image")
    told = answer.json()["parameters"]
    assert {name: told[name] for name in ("width", "height", "guidance_scale", "strength")} == {
        "width": 512,
        "height": 512,
        "guidance_scale": 7.5,
        "strength": 0.8,
    }


async def test_the_guides_inpaint_reaches_the_backend(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    fields = {"prompt": "Add call-to-action button", "width": "512", "height": "512", "mask_type": "center"}
    answer = await ask(client, "inpaint", {"image": PICTURE}, fields)
    assert answer.status_code == 200, answer.text
    assert (uploads_of(backend).mask_type, uploads_of(backend).mask) == ("center", None)
    assert answer.json()["parameters"]["strength"] == 1.0


async def test_the_guides_controlnet_reaches_the_backend(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    fields = {"prompt": "following structure", "width": "512", "height": "512", "controlnet_type": "canny"}
    answer = await ask(client, "controlnet", {"control_image": PICTURE}, fields)
    assert answer.status_code == 200, answer.text
    assert uploads_of(backend).hints == (PICTURE,)
    assert answer.json()["parameters"]["controls"] == [CANNY_CONTROL]


async def test_several_controlnets_keep_their_order(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    other = file_of(colour="black")
    fields = {
        **CUP,
        "controlnet_type": ["depth", "canny"],
        "controlnet_conditioning_scale": ["0.5", "1.5"],
        "control_guidance_end": "0.7",
        "preprocess": "true",
    }
    answer = await ask(client, "controlnet", [("control_image", PICTURE), ("control_image", other)], fields)
    assert answer.status_code == 200, answer.text
    controls = backend.asked[0].params.controls
    assert [(control.type, control.scale, control.end) for control in controls] == [
        ("depth", 0.5, 0.7),
        ("canny", 1.5, 0.7),
    ]
    assert (uploads_of(backend).hints, uploads_of(backend).preprocess) == ((PICTURE, other), True)


@pytest.mark.parametrize("as_file", [False, True])
async def test_one_json_part_says_the_same_as_fields(
    as_file: bool, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    said = {
        **CUP,
        "controlnet_type": "canny",
        "preprocess": True,
        "num_images": 2,
        "controlnet_conditioning_scale": 0.5,
    }
    whole = json.dumps(said)
    files: dict[str, Any] = {"control_image": PICTURE}
    if as_file:
        files["params"] = ("blob", whole, "application/json")
    answer = await ask(client, "controlnet", files, {} if as_file else {"params": whole})
    assert answer.status_code == 200, answer.text
    assert uploads_of(backend).preprocess
    assert backend.asked[0].params.num_images == 2
    assert [control.scale for control in backend.asked[0].params.controls] == [0.5]


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (80, 64)),
        ({"width": "128"}, (128, 88)),
        ({"height": "256"}, (384, 256)),
        ({"width": "64", "height": "64"}, (64, 64)),
    ],
)
async def test_a_size_left_open_follows_the_picture_at_the_models_area(
    fields: dict[str, str], size: tuple[int, int], client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await ask(client, "image-to-image", {"init_image": PICTURE}, CUP | fields)
    params = backend.asked[0].params
    assert (params.width, params.height) == size


async def test_a_controlnet_inpaints_by_a_masks_name(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    files = {"control_image": PICTURE, "init_image": PICTURE}
    answer = await ask(client, "controlnet", files, CANNY | {"mask_type": "center", "mask_feather": "4"})
    assert answer.status_code == 200, answer.text
    assert (uploads_of(backend).task, uploads_of(backend).mask_type) == ("inpaint", "center")


@pytest.mark.parametrize(
    ("controls", "param"),
    [
        ([{"type": "canny", "scale": 9}], "controls/0/scale"),
        ([{"type": "canny"}, {"type": 3}], "controls/1/type"),
        ([{"type": "canny", "start": 0.9, "end": 0.1}], "controls/0"),
        (["canny"], "controls/0"),
        ([{"type": "canny", "scal": 1}], "controls/0/scal"),
        ([{"type": "canny", "SECRET<script>": 1}], "controls/0"),
        ([{"type": "canny"}] * 5, "controls"),
    ],
)
async def test_a_fault_inside_controls_says_where(controls: Any, param: str, client: httpx.AsyncClient) -> None:
    whole = {"params": json.dumps(CUP | {"controls": controls})}
    answer = await ask(client, "controlnet", {"control_image": PICTURE}, whole)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert answer.json()["errors"][0]["pointer"] == f"#/{param}"
    assert "SECRET" not in answer.text


async def test_pictures_can_be_streamed_and_had_as_bytes(client: httpx.AsyncClient) -> None:
    stream = await client.post(f"{BASE}/image-to-image", files={"init_image": PICTURE}, data=CUP, headers=EVENTS)
    assert [line for line in stream.text.splitlines() if line.startswith("event:")][-1] == "event: done"
    accept = {"Accept": "image/webp"}
    bare = await client.post(f"{BASE}/image-to-image", files={"init_image": PICTURE}, data=CUP, headers=accept)
    assert (bare.headers["content-type"], Image.open(io.BytesIO(bare.content)).format) == ("image/webp", "WEBP")


@pytest.mark.parametrize(
    ("door", "files", "fields", "field"),
    [
        ("image-to-image", {}, CUP, "init_image"),
        ("image-to-image", {"init_image": b"not a picture"}, CUP, "init_image"),
        ("image-to-image", {"init_image": file_of(kind="GIF")}, CUP, "init_image"),
        ("image-to-image", {"init_image": file_of(1, 1)}, CUP, "init_image"),
        ("image-to-image", {"init_image": PICTURE}, {}, "prompt"),
        ("image-to-image", {"init_image": PICTURE}, CUP | {"strength": "nan"}, "strength"),
        ("image-to-image", {"init_image": PICTURE}, CUP | {"strength": "0"}, "strength"),
        ("image-to-image", {"init_image": PICTURE}, CUP | {"strength": "1.1"}, "strength"),
        ("image-to-image", {"init_image": PICTURE}, CUP | {"width": "100"}, "width"),
        ("image-to-image", {"init_image": PICTURE}, CUP | {"width": "many"}, "width"),
        ("image-to-image", {"init_image": PICTURE}, CUP | {"fit": "squeeze"}, "fit"),
        ("image-to-image", {"init_image": PICTURE}, CUP | {"steps": "20"}, "steps"),
        ("image-to-image", {"init_image": PICTURE}, CUP | {"mask_feather": "4"}, "mask_feather"),
        ("image-to-image", {"init_image": PICTURE}, CUP | {"seed": ["1", "2"]}, "seed"),
        ("image-to-image", {"init_image": PICTURE}, CUP | {"params": "{}", "guess_mode": "true"}, "guess_mode"),
        ("image-to-image", {"init_image": PICTURE}, CUP | {"params": '{"prompt": "x"}'}, "prompt"),
        ("inpaint", {"image": PICTURE}, CUP, "mask"),
        ("inpaint", {"mask": PICTURE}, CUP, "image"),
        ("inpaint", {"image": PICTURE, "mask": file_of(32, 32)}, CUP, "mask"),
        ("inpaint", {"image": PICTURE, "mask": PICTURE}, CUP | {"mask_type": "full"}, "mask_type"),
        ("inpaint", {"image": PICTURE}, CUP | {"mask_type": "middle"}, "mask_type"),
        ("controlnet", {"control_image": PICTURE}, CANNY | {"mask_type": "center"}, "init_image"),
        ("controlnet", {"control_image": PICTURE, "mask": PICTURE}, CANNY | {"mask_type": "center"}, "mask_type"),
        ("controlnet", {"control_image": PICTURE, "init_image": PICTURE}, CANNY | {"mask_type": "mid"}, "mask_type"),
        ("controlnet", {}, CUP | {"controlnet_type": "canny"}, "control_image"),
        ("controlnet", {"control_image": PICTURE}, CUP, "control_image"),
        ("controlnet", {"control_image": PICTURE}, CUP | {"controlnet_type": "sketch"}, "controlnet_type"),
        ("controlnet", {"control_image": PICTURE}, CUP | {"controlnet_type": ["canny", "depth"]}, "controlnet_type"),
        (
            "controlnet",
            {"control_image": PICTURE},
            CUP | {"controlnet_type": "canny", "controlnet_conditioning_scale": "9"},
            "controlnet_conditioning_scale",
        ),
        (
            "controlnet",
            {"control_image": PICTURE},
            CUP | {"controlnet_type": "canny", "controlnet_conditioning_scale": "nan"},
            "controlnet_conditioning_scale",
        ),
        (
            "controlnet",
            {"control_image": PICTURE},
            CUP | {"controlnet_type": "canny", "control_guidance_start": "0.9", "control_guidance_end": "0.1"},
            "control_guidance_start",
        ),
        (
            "controlnet",
            {"control_image": PICTURE},
            CUP | {"controlnet_type": "canny", "preprocess": "yes"},
            "preprocess",
        ),
        ("controlnet", {"control_image": PICTURE, "mask": PICTURE}, CUP | {"controlnet_type": "canny"}, "init_image"),
    ],
)
async def test_what_is_wrong_is_said_with_its_field_and_reaches_no_engine(
    door: str,
    files: dict[str, bytes],
    fields: dict[str, Any],
    field: str,
    client: httpx.AsyncClient,
    backend: FakeBackend,
) -> None:
    # httpx makes a multipart form of fields alone only when they look like files.
    bare = {name: (None, value) for name, value in fields.items()}
    answer = await (ask(client, door, files, fields) if files else ask(client, door, bare, {}))
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["param"] == field
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert not backend.asked


@pytest.mark.parametrize("name", ["strength", "mask_feather", "guess_mode"])
async def test_text_to_image_refuses_what_is_for_pictures(name: str, client: httpx.AsyncClient) -> None:
    value: Any = {"strength": 0.5, "mask_feather": 3, "guess_mode": True}[name]
    answer = await client.post(f"{BASE}/text-to-image", json=CUP | {name: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, name)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [("application/json", 415), ("application/x-www-form-urlencoded", 415), ("multipart/form-data", 400)],
)
async def test_a_body_that_is_no_form_is_refused(content_type: str, status: int, client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{BASE}/inpaint", content=b"{}", headers={"Content-Type": content_type})
    assert answer.status_code == status


async def test_a_form_of_too_many_parts_or_bytes_is_refused(service: DiffusionService) -> None:
    async with http(create_api(service, max_upload_bytes=2_000)) as client:
        assert (await ask(client, "inpaint", {"image": b"x" * 4_000})).status_code == 413
        many = [("init_image", b"x") for _ in range(20)]
        assert (await ask(client, "image-to-image", many)).status_code in (400, 413)
    async with http(create_api(service)) as client:
        assert (await ask(client, "image-to-image", many)).status_code == 400
        assert (await ask(client, "image-to-image", many[:2])).json()["error"]["param"] == "init_image"


async def test_the_documentation_has_the_forms(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for door, file in (("image-to-image", "init_image"), ("inpaint", "image"), ("controlnet", "control_image")):
        schema = paths[f"{BASE}/{door}"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert file in schema["required"]
        assert {"prompt", "strength", "fit", file} <= set(schema["properties"])


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"controlnet_type": ["\ud800"]}, "controlnet_type"),
        ({"controlnet_type": {"a": 1}}, "controlnet_type"),
        ({"controlnet_type": "canny", "fit": [[[["cover"]]]]}, "fit"),
        ({"controlnet_type": "canny", "fit": 3}, "fit"),
        ({"controlnet_type": "canny", "controls": [{"type": "depth"}]}, "controlnet_type"),
        ({"controls": [{"type": "depth"}], "controlnet_conditioning_scale": 9}, "controlnet_conditioning_scale"),
        ({"controlnet_conditioning_scale": 1}, "controlnet_type"),
    ],
)
async def test_odd_values_in_the_json_part_are_the_callers_fault(
    params: dict[str, Any], field: str, client: httpx.AsyncClient
) -> None:
    answer = await ask(client, "controlnet", {"control_image": PICTURE}, {"params": json.dumps(CUP | params)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)


async def test_a_long_number_costs_no_time(client: httpx.AsyncClient) -> None:
    fields = CUP | {"guidance_scale": "1" * 200_000 + "x", "strength": "٣"}
    async with asyncio.timeout(5):
        answer = await ask(client, "image-to-image", {"init_image": PICTURE}, fields)
    assert {fault["pointer"] for fault in answer.json()["errors"]} == {"#/guidance_scale", "#/strength"}


async def test_no_codec_of_the_callers_choice_reads_the_form(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\\ud800\r\n--x--\r\n'
    assert (await client.post(f"{BASE}/inpaint", content=body, headers=headers)).status_code == 415

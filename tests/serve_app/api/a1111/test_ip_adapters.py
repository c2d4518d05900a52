"""Units of IP-Adapters are reference images, under the names that A1111's clients know."""

import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest
from PIL import Image

from deployments.engine.protocol.settings import ReferenceSettings
from serve_app.api.a1111.ip_adapters import adapter_of
from serve_app.api.application import create_api
from serve_app.labels.parameters_text import parse_parameters
from serve_app.service import DiffusionService
from tests.serve_app.fakes import STYLED, TINY, TWO_STYLES, FakeBackend, http

TEXT_TO_IMAGE, IMAGE_TO_IMAGE = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


TEAL: Final = picture("teal")
PINK: Final = picture("pink")


def unit(image: bytes | None = TEAL, **fields: Any) -> dict[str, Any]:
    shown = {} if image is None else {"image": base64.b64encode(image).decode()}
    return {"module": "ip-adapter-auto", "model": "ip-adapter_sd15 [6a3f6166]", **shown, **fields}


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(models=(STYLED, TINY, TWO_STYLES))


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with http(create_api(DiffusionService(backend))) as client:
        yield client


async def ask(client: httpx.AsyncClient, *units: dict[str, Any], door: str = TEXT_TO_IMAGE, **more: Any) -> Any:
    body = {"prompt": "a cup", "width": 64, "height": 64, "alwayson_scripts": {"ControlNet": {"args": units}}}
    return await client.post(door, json=body | more)


async def test_a_units_picture_weight_and_range_are_a_reference(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    answer = await ask(client, unit(weight=0.6, guidance_start=0.1, guidance_end=0.7, resize_mode=1, control_mode=2))
    assert answer.status_code == 200, answer.text
    (request,) = backend.asked
    assert request.uploads is not None
    assert (request.uploads.references, request.uploads.hints, request.params.controls) == ((TEAL,), (), ())
    assert request.params.reference == ReferenceSettings(adapter="style", scale=0.6, start=0.1, end=0.7)
    assert not request.params.guess_mode
    # What the file says can be sent again.
    (text,) = json.loads(answer.json()["info"])["infotexts"]
    assert "Module: ip-adapter-auto, Model: style, Weight: 0.6" in parse_parameters(text)["ControlNet 0"]


@pytest.mark.parametrize(
    ("weights", "reference"),
    [
        ((0.5, 0.5), ReferenceSettings(adapter="style", scale=0.5)),
        ((0.5, 1.0), ReferenceSettings(adapter="style", weights=(0.5, 1.0))),
    ],
)
async def test_several_units_are_one_reference(
    weights: tuple[float, float], reference: ReferenceSettings, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    units = (unit(image, weight=weight) for image, weight in zip((TEAL, PINK), weights, strict=True))
    assert (await ask(client, *units)).status_code == 200
    assert backend.asked[0].params.reference == reference
    assert backend.asked[0].uploads is not None
    assert backend.asked[0].uploads.references == (TEAL, PINK)


async def test_a_unit_without_a_picture_takes_after_the_image_that_is_changed(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    init = [base64.b64encode(PINK).decode()]
    answer = await ask(client, unit(None, model="style", module="none"), door=IMAGE_TO_IMAGE, init_images=init)
    assert answer.status_code == 200, answer.text
    assert backend.asked[0].uploads is not None
    assert (backend.asked[0].uploads.references, backend.asked[0].uploads.image) == ((PINK,), PINK)


@pytest.mark.parametrize(
    ("units", "model", "rule"),
    [
        ([unit(None)], "styled", "must have an image"),
        ([unit()], "tiny", "has none"),
        ([unit(guidance_start=0.5, guidance_end=0.5)], "styled", "below its guidance_end"),
        ([unit(), unit(guidance_end=0.5)], "styled", "one model, guidance_start"),
        ([unit()] * 5, "styled", "at most 4"),
        ([unit()], "two-styles", "several: style, face"),
        ([unit(model="ip-adapter-plus-face_sd15")], "styled", "for faces"),
    ],
    ids=["no picture", "no adapter", "range", "ranges", "five", "which", "faces"],
)
async def test_what_makes_no_sense_is_refused_by_the_scripts_name(
    units: list[dict[str, Any]], model: str, rule: str, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    answer = await ask(client, *units, override_settings={"sd_model_checkpoint": model})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "alwayson_scripts"), answer.text
    assert rule in answer.json()["error"]["message"]
    assert backend.asked == []


async def test_lists_tell_of_adapters(client: httpx.AsyncClient) -> None:
    names = (await client.get("/controlnet/model_list")).json()["model_list"]
    assert names == ["canny", "depth", "style", "face"]
    assert (await client.get("/controlnet/module_list")).json()["module_list"][-1] == "ip-adapter-auto"
    types = (await client.get("/controlnet/control_types")).json()["control_types"]
    assert types["IP-Adapter"]["model_list"] == ["None", "style", "face"]
    assert set(types["All"]["model_list"]) == {"None", *names}


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("style", "style"),
        ("Style [0123abcd]", "style"),
        ("ip-adapter-plus_sd15", "plus"),
        ("ip-adapter-plus_sdxl_vit-h [ffff]", "plus"),
        ("ip-adapter_sd15", None),
        ("ip-adapter-auto", None),
    ],
)
def test_a_files_name_finds_its_adapter(name: str, adapter: str | None) -> None:
    assert adapter_of(name, ["style", "plus"]) == adapter


def test_a_face_is_no_style() -> None:
    assert adapter_of("ip-adapter-full-face_sd15", ["style", "full-face"]) == "full-face"
    with pytest.raises(ValueError, match="faces"):
        adapter_of("ip-adapter-faceid_sd15", ["style"])

"""Reference images at the native endpoints: how they come, what reaches the backend, and what is refused."""

import base64
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

import httpx
import pytest
from PIL import Image

from deployments.engine.protocol.settings import ReferenceSettings
from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.config.sections import CacheConfig
from serve_app.service import DiffusionService
from tests.serve_app.fakes import EVENTS, STYLED, TINY, TWO_STYLES, FakeBackend, http

BASE: Final = "/ads/v2/diffusion"
CUP: Final = {"prompt": "a red cup", "seed": "7"}


def file_of(colour: str = "teal", side: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def strip() -> bytes:
    """A picture of which an encoder would make one of a hundred thousand pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8192, 16)).save(buffer, "PNG")
    return buffer.getvalue()


def text_of(file: bytes) -> str:
    return base64.b64encode(file).decode()


PICTURE: Final = file_of()
OTHER: Final = file_of("orange")


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(models=(TINY, STYLED, TWO_STYLES))


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with http(create_api(DiffusionService(backend, cache=ResultCache(CacheConfig())))) as client:
        yield client


async def ask_json(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post(f"{BASE}/text-to-image", json={**CUP, "seed": 7, **fields})


async def ask_form(
    client: httpx.AsyncClient, *references: bytes, door: str = "text-to-image", **fields: Any
) -> httpx.Response:
    own = {"image-to-image": ["init_image"], "inpaint": ["image"], "controlnet": ["control_image"]}.get(door, [])
    files = [(name, PICTURE) for name in own] + [("reference_images", file) for file in references]
    return await client.post(f"{BASE}/{door}", files=files, data={**CUP, **fields})


async def test_json_and_a_form_bring_the_same(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    how = {"scale": 0.5, "start": 0.1, "end": 0.9, "weights": [1.0, 0.5]}
    texts = [text_of(PICTURE), f"data:image/png;base64,{text_of(OTHER)}"]
    answers = [
        await ask_json(client, reference=how, reference_images=texts),
        await ask_form(client, PICTURE, OTHER, reference=json.dumps(how)),
        await ask_form(client, PICTURE, OTHER, params=json.dumps({"reference": how})),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200], answers[0].text
    # The second and the third are served from the cache: they are the first one's equals.
    assert [answer.json()["cached"] for answer in answers] == [False, True, True]
    (request,) = backend.asked
    assert request.uploads is not None
    assert request.uploads.references == (PICTURE, OTHER)
    assert request.params.reference == ReferenceSettings(
        adapter="style", scale=0.5, start=0.1, end=0.9, weights=(1, 0.5)
    )


@pytest.mark.parametrize("door", ["text-to-image", "image-to-image", "inpaint", "controlnet"])
async def test_every_door_takes_them_without_becoming_another_task(door: str) -> None:
    both = FakeBackend(models=(replace(STYLED, controlnets={"canny": "nowhere"}),))
    more = {"inpaint": {"mask_type": "center"}, "controlnet": {"controlnet_type": "canny"}}.get(door, {})
    async with http(create_api(DiffusionService(both))) as client:
        answer = await ask_form(client, OTHER, door=door, **more)
    assert answer.status_code == 200, answer.text
    (request,) = both.asked
    assert request.uploads is not None
    assert request.uploads.references == (OTHER,)
    task = door if door in ("image-to-image", "inpaint") else "text-to-image"
    assert request.uploads.task == task
    assert answer.json()["parameters"]["reference"]["adapter"] == "style"


async def test_pictures_alone_act_fully_and_the_answer_says_so(client: httpx.AsyncClient) -> None:
    told = (await ask_json(client, reference_images=[text_of(PICTURE)])).json()
    full = {"adapter": "style", "scale": 1.0, "start": 0.0, "end": 1.0, "weights": []}
    assert (told["model"], told["parameters"]["reference"]) == ("styled", full)
    plain = (await ask_json(client)).json()
    assert (plain["model"], "reference" in plain["parameters"]) == ("tiny", False)


async def test_an_answers_parameters_and_its_pictures_give_the_same_images(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    first = (await ask_form(client, PICTURE, reference='{"scale": 0.25}')).json()
    again = await ask_form(client, PICTURE, params=json.dumps(first["parameters"] | {"seed": None, "prompt": None}))
    assert again.status_code == 200, again.text
    assert again.json()["cached"]
    assert len(backend.asked) == 1


@pytest.mark.parametrize("given", [None, []])
async def test_no_pictures_are_pictures_left_out(given: Any, client: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = await ask_json(client, reference_images=given, reference=None)
    assert answer.status_code == 200, answer.text
    assert (backend.asked[0].uploads, backend.asked[0].params.reference) == (None, None)


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({"reference": {}}, "reference_images", "is required with `reference`"),
        ({"reference_images": [text_of(PICTURE)] * 5}, "reference_images", "at most 4"),
        ({"reference_images": text_of(PICTURE)}, "reference_images", "a list of pictures"),
        ({"reference_images": ["http://example.com/a.png"]}, "reference_images", "none is fetched"),
        ({"reference_images": [text_of(b"GIF89a nothing")]}, "reference_images", "PNG, JPEG or WebP"),
        ({"reference_images": [text_of(file_of(side=8))]}, "reference_images", "at least 16 x 16"),
        ({"reference_images": [text_of(strip())]}, "reference_images", "8 times as long as wide"),
        ({"reference_images": [text_of(PICTURE)], "reference": {"weights": [1, 1]}}, "reference", "as many weights"),
        ({"reference_images": [text_of(PICTURE)], "reference": {"start": 0.5, "end": 0.5}}, "reference", "less than"),
        ({"reference_images": [text_of(PICTURE)], "reference": {"scale": 3}}, "reference/scale", "at most 2"),
        ({"reference_images": [text_of(PICTURE)], "reference": {"strength": 1}}, "reference/strength", "not a field"),
        ({"reference_images": [text_of(PICTURE)], "reference": {"adapter": "none"}, "model_name": "styled"},
         "reference", "it has: style"),
        ({"reference_images": [text_of(PICTURE)], "model_name": "two-styles"}, "reference", "several: style, face"),
        ({"reference_images": [text_of(PICTURE)], "model_name": "tiny"}, "reference_images", "and tiny has none"),
        ({"reference_images": [text_of(PICTURE)], "cache": "similar", "seed": None}, "cache", "without images"),
    ],
)  # fmt: skip
async def test_what_makes_no_sense_is_refused_with_the_field_and_the_rule(
    fields: dict[str, Any], field: str, rule: str, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    answer = await ask_json(client, **fields)
    told = answer.json()
    assert (answer.status_code, told["errors"][0]["pointer"]) == (422, f"#/{field}"), answer.text
    assert rule in told["errors"][0]["message"]
    assert backend.asked == []


@pytest.mark.parametrize(
    ("fields", "files", "field"),
    [
        ({"reference": "strong"}, 1, "reference"),
        ({"reference": '{"scale": 1, "scale": 2}'}, 1, "reference"),
        ({"reference": "{}"}, 0, "reference_images"),
        ({}, 5, "reference_images"),
    ],
)
async def test_a_forms_mistakes_are_told_alike(
    fields: dict[str, str], files: int, field: str, client: httpx.AsyncClient
) -> None:
    answer = await client.post(
        f"{BASE}/text-to-image",
        files=[("reference_images", PICTURE)] * files or [("params", ("blob", b"{}", "application/json"))],
        data={**CUP, **fields},
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field), answer.text


async def test_a_named_adapter_finds_its_model(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = await ask_json(client, reference_images=[text_of(PICTURE)], reference={"adapter": "face"})
    assert answer.status_code == 200, answer.text
    assert backend.asked[0].model == "two-styles"


async def test_models_tell_their_adapters(client: httpx.AsyncClient) -> None:
    rows = (await client.get(f"{BASE}/models")).json()["models"]
    assert {row["name"]: row["ip_adapters"] for row in rows} == {
        "tiny": [],
        "styled": ["style"],
        "two-styles": ["style", "face"],
    }


async def test_an_idempotency_key_belongs_to_these_pictures(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    headers = {"Idempotency-Key": "a-key"}

    async def send(picture: bytes) -> httpx.Response:
        files = [("reference_images", picture)]
        return await client.post(f"{BASE}/text-to-image", files=files, data=CUP, headers=headers)

    first, again, other = await send(PICTURE), await send(PICTURE), await send(OTHER)
    assert (first.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_a_stream_takes_them(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    async with client.stream(
        "POST", f"{BASE}/text-to-image", files=[("reference_images", PICTURE)], data=CUP, headers=EVENTS
    ) as answer:
        told = (await answer.aread()).decode()
    assert "event: done" in told
    assert backend.asked[0].params.reference is not None


async def test_tokens_are_counted_of_such_a_request_as_well(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a cup", "model_name": "tiny"}
    assert (await client.post(f"{BASE}/tokens", json=body)).status_code == 200
    refused = await client.post(f"{BASE}/tokens", json=body | {"reference_images": [text_of(PICTURE)]})
    assert refused.json()["error"]["param"] == "reference_images"


async def test_hires_comes_as_a_forms_part_too(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = await ask_form(client, PICTURE, hires='{"scale": 2, "strength": 0.5}')
    assert answer.status_code == 200, answer.text
    assert backend.asked[0].params.hires is not None
    assert backend.asked[0].params.hires.strength == 0.5

"""`cache: similar` over every surface: told with each image, never kept, forgotten on demand."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from deployments.engine.protocol.events import Continuation, ImageDone
from deployments.engine.protocol.request import Request
from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.client import DarkroomClient
from serve_app.config.sections import CacheConfig
from serve_app.labels.file_metadata import read_texts
from serve_app.labels.parameters_text import parse_parameters
from serve_app.service import DiffusionService
from tests.serve_app.fakes import EVENTS, PATH, FakeBackend, Step, http, success
from tests.serve_app.servers import http_server

CUP = {"prompt": "a red cup", "cache": "similar"}
TOLD = {"steps": 6, "distance": 0.0125}


def continued(request: Request) -> list[Step]:
    """The first image took over another one's state, the others did not."""
    return [
        replace(event, continued=Continuation(6, 0.0125)) if isinstance(event, ImageDone) and not event.index else event
        for event in success(request)
    ]


def cup_file() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (128, 128), (200, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def url(service: DiffusionService, backend: FakeBackend) -> Iterator[str]:
    backend.script = continued
    with http_server(create_api(service)) as url:
        yield url


async def test_json_and_events_tell_what_each_image_has_begun_from(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = continued
    images = (await client.post(PATH, json=CUP | {"num_images": 2})).json()["images"]
    assert [image.get("continued") for image in images] == [TOLD, None]
    stream = (await client.post(PATH, json=CUP, headers=EVENTS)).text
    (block,) = (block for block in stream.split("\n\n") if "event: image\n" in block)
    (data,) = (line.removeprefix("data: ") for line in block.splitlines() if line.startswith("data: "))
    assert json.loads(data)["continued"] == TOLD


async def test_an_image_that_comes_alone_tells_it_in_a_header_and_in_itself(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = continued
    answer = await client.post(PATH, json=CUP, headers={"Accept": "image/png"})
    assert answer.headers["x-continued"] == "steps=6; distance=0.012500"
    text = read_texts(answer.content).parameters
    assert text is not None
    assert parse_parameters(text)["Continued after"] == "6"
    backend.script = success
    plain = await client.post(PATH, json=CUP, headers={"Accept": "image/png"})
    assert "x-continued" not in plain.headers
    assert b"Continued" not in plain.content


def test_the_python_clients_tell_it(url: str) -> None:
    with DarkroomClient(url) as client:
        (image,) = client.generate(**CUP)
    assert image.continued == TOLD
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        made: Any = client.images.generate(prompt="a red cup", extra_body={"cache": "similar"})
    assert made.data[0].continued == TOLD


async def test_what_was_continued_is_never_kept_and_what_was_not_is(backend: FakeBackend) -> None:
    async with DiffusionService(backend, cache=ResultCache(CacheConfig())) as service:
        client = http(create_api(service))
        for script, kept in ((continued, 0), (success, 1)):
            backend.script = script
            await client.post(PATH, json=CUP)
            assert (await client.get("/ads/v2/diffusion/stats")).json()["total_cache_entries"] == kept
        assert (await client.post(PATH, json=CUP)).headers["x-cache"] == "HIT"
        assert (await client.post(PATH, json=CUP | {"prompt": "a blue cup"})).headers["x-cache"] == "MISS"


@pytest.mark.parametrize(
    ("asked", "field"),
    [({"seed": 3}, "seed"), ({"exact": True}, "cache"), ({"deep_cache": 2}, "cache"), ({"hires": {}}, "cache")],
)
async def test_what_cannot_begin_from_another_image_is_refused_by_its_field(
    asked: dict[str, Any], field: str, client: httpx.AsyncClient
) -> None:
    answer = await client.post(PATH, json=CUP | asked)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["param"], "similar" in error["message"]) == (field, True)


async def test_a_request_with_an_image_is_refused(client: httpx.AsyncClient) -> None:
    files = {"init_image": ("cup.png", cup_file(), "image/png")}
    answer = await client.post(PATH.replace("text-to-image", "image-to-image"), files=files, data=CUP)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "cache")


async def test_an_emptied_cache_has_no_states_either(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await client.delete("/ads/v2/diffusion/cache")
    assert backend.forgotten == 1

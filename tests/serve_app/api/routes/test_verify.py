"""Every surface gives labelled files, and the endpoint tells what is in them, and in anybody else's."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.types import Message, Scope

from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.config.labels import LabelsConfig, WatermarkConfig
from serve_app.config.sections import CacheConfig
from serve_app.labels.labeller import Labeller
from serve_app.service import DiffusionService
from tests.deployments.watermark.pictures import as_jpeg, photo
from tests.serve_app.fakes import EVENTS, PATH, FakeBackend, http
from tests.serve_app.labels.files import FORMATS, file_of
from tests.serve_app.labels.requests import SIDE, photos

DOOR = "/ads/v2/diffusion/verify"
PAYLOAD = "61626364"
ASKED = {"prompt": "a red cup", "width": SIDE, "height": SIDE, "seed": 7}
MARKED = LabelsConfig(watermark=WatermarkConfig(payload=PAYLOAD))


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(photos)


@pytest.fixture
def service(backend: FakeBackend) -> DiffusionService:
    return DiffusionService(backend, labeller=Labeller(MARKED), cache=ResultCache(CacheConfig()))


@pytest.fixture
async def client(service: DiffusionService) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(service)
    async with http(app) as client:
        yield client
    await app.state.jobs.stop()


async def verified(client: httpx.AsyncClient, file: bytes) -> dict[str, Any]:
    answer = await client.post(DOOR, files={"image": ("../../x.png", file, "text/html")})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def check(found: dict[str, Any], seed: int = 7, prompt: str = "a red cup") -> None:
    assert found["ai_made"]
    assert (found["c2pa"]["state"], found["c2pa"]["signed_by_this_server"]) == ("valid", True)
    assert found["c2pa"]["source_types"] == ["trainedAlgorithmicMedia"]
    assert found["digital_source_type"] == "trainedAlgorithmicMedia"
    assert (found["watermark"]["payload"], found["watermark"]["marked_by_this_server"]) == (PAYLOAD, True)
    assert found["parameters"]["fields"]["Prompt"] == prompt
    assert found["parameters"]["fields"]["Seed"] == str(seed)


@pytest.mark.parametrize("output_format", FORMATS)
async def test_a_file_of_ours_carries_all_of_it(client: httpx.AsyncClient, output_format: str) -> None:
    answer = await client.post(PATH, json=ASKED, headers={"Accept": f"image/{output_format}"})
    found = await verified(client, answer.content)
    check(found)
    assert (found["format"], found["width"], found["height"]) == (output_format, SIDE, SIDE)


async def test_json_streams_batches_and_openai_s_answers_have_labelled_files(client: httpx.AsyncClient) -> None:
    images = (await client.post(PATH, json=ASKED | {"num_images": 2})).json()["images"]
    for index, image in enumerate(images):
        check(await verified(client, base64.b64decode(image["data"])), 7 + index)
    stream = (await client.post(PATH, json=ASKED | {"seed": 3}, headers=EVENTS)).text
    (data,) = [
        json.loads(line[6:])["data"] for line in stream.splitlines() if line.startswith("data: ") and '"format"' in line
    ]
    check(await verified(client, base64.b64decode(data)), 3)
    batch = (await client.post("/ads/v2/diffusion/batch-generate", json={"requests": [ASKED]})).json()
    check(await verified(client, base64.b64decode(batch["results"][0]["images"][0]["data"])))
    openai = await client.post(
        "/v1/images/generations",
        json={
            "prompt": "a red cup",
            "size": f"{SIDE}x{SIDE}",
            "seed": 5,
            "output_format": "jpeg",
            "output_compression": 80,
        },
    )
    check(await verified(client, base64.b64decode(openai.json()["data"][0]["b64_json"])), 5)


async def test_a_job_s_files_are_labelled(client: httpx.AsyncClient) -> None:
    body = {"requests": [ASKED]}
    later = {"Prefer": "respond-async"}
    place = (await client.post("/ads/v2/diffusion/batch-generate", json=body, headers=later)).headers["location"]
    async with asyncio.timeout(10):
        while (await client.get(place)).json()["state"] in ("queued", "running"):
            await asyncio.sleep(0.02)
    check(await verified(client, (await client.get(f"{place}/images/0/0")).content))


async def test_a_cached_file_is_the_labelled_one_and_another_metadata_is_another_file(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    files = [(await client.post(PATH, json=ASKED, headers={"Accept": "image/png"})) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in files] == ["MISS", "HIT"]
    assert files[0].content == files[1].content
    quiet = await client.post(PATH, json=ASKED | {"metadata": "none"}, headers={"Accept": "image/png"})
    assert quiet.headers["x-cache"] == "MISS"
    found = await verified(client, quiet.content)
    assert found["parameters"] is None
    assert found["ai_made"]


async def test_the_default_payload_does_not_tell_whose_mark_it_is(backend: FakeBackend) -> None:
    async with http(create_api(DiffusionService(backend, labeller=Labeller(LabelsConfig())))) as client:
        answer = await client.post(PATH, json=ASKED, headers={"Accept": "image/png"})
        found = (await verified(client, answer.content))["watermark"]
    assert (found["found"], found["payload"], found["marked_by_this_server"]) == (True, "44524b4d", None)


async def test_who_leaves_is_not_waited_for(service: DiffusionService, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_api(service)
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def verify(*_: object) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(app.state.verifier, "verify", verify)
    request = httpx.Request("POST", f"http://test{DOOR}", files={"image": file_of("png")})
    caller = Caller(request.read(), request.headers["content-type"])
    answering = asyncio.create_task(app(scope_of(caller), caller.receive, caller.send))
    async with asyncio.timeout(10):
        await begun.wait()
        caller.left.set()
        await cancelled.wait()
        await answering


class Caller:
    """Sends a form, and leaves when it is told to."""

    def __init__(self, body: bytes, content_type: str) -> None:
        self.body, self.content_type = body, content_type
        self.left = asyncio.Event()
        self._has_sent = False

    async def receive(self) -> Message:
        if not self._has_sent:
            self._has_sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        pass


def scope_of(caller: Caller) -> Scope:
    headers = {"content-type": caller.content_type, "content-length": str(len(caller.body))}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": DOOR,
        "raw_path": DOOR.encode(),
        "query_string": b"",
        "scheme": "http",
        "root_path": "",
        "server": ("test", 80),
        "client": ("test", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }


async def test_only_the_mark_in_the_pixels_survives_a_copy_without_the_texts(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, json=ASKED, headers={"Accept": "image/png"})
    pixels = as_jpeg(np.asarray(Image.open(io.BytesIO(answer.content))), 75)
    copy = io.BytesIO()
    Image.fromarray(pixels).save(copy, "PNG")
    found = await verified(client, copy.getvalue())
    assert (found["c2pa"]["state"], found["digital_source_type"], found["parameters"]) == ("none", None, None)
    assert found["watermark"]["marked_by_this_server"]
    assert found["ai_made"]


async def test_a_photo_with_nothing_says_nothing(client: httpx.AsyncClient) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photo(256, 5)).save(buffer, "JPEG")
    found = await verified(client, buffer.getvalue())
    assert not found["ai_made"]
    assert found["c2pa"]["state"] == "none"
    assert not found["watermark"]["found"]


async def test_an_uploaded_picture_s_manifest_is_kept_and_its_place_is_not(client: httpx.AsyncClient) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.34)})
    exif[0x010F] = "SecretCameraMaker"
    buffer = io.BytesIO()
    Image.fromarray(photo(SIDE)).save(buffer, "JPEG", exif=exif)
    for uploaded in (buffer.getvalue(), (await client.post(PATH, json=ASKED, headers={"Accept": "image/png"})).content):
        answer = await client.post(
            "/ads/v2/diffusion/image-to-image",
            files={"init_image": uploaded},
            data={"prompt": "a cup", "seed": "1", "width": str(SIDE), "height": str(SIDE)},
            headers={"Accept": "image/jpeg"},
        )
        assert answer.status_code == 200
        assert b"SecretCamera" not in answer.content
        found = await verified(client, answer.content)
        assert found["digital_source_type"] == "compositeWithTrainedAlgorithmicMedia"
        assert (found["c2pa"]["actions"][:2], found["c2pa"]["ingredients"]) == (["c2pa.opened", "c2pa.edited"], 1)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"<html>", "PNG, JPEG or WebP"),
        (file_of("png")[:400], "broken or cut off"),
        (file_of("png", 8, 8), "at least 16 x 16"),
    ],
    ids=["no picture", "cut off", "tiny"],
)
async def test_what_is_no_picture_is_refused_as_at_every_door(
    client: httpx.AsyncClient, file: bytes, words: str
) -> None:
    answer = await client.post(DOOR, files={"image": file})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert answer.json()["error"]["param"] == "image"


async def test_a_form_has_a_picture_and_nothing_else(client: httpx.AsyncClient) -> None:
    assert (await client.post(DOOR, files={"picture": file_of("png")})).status_code == 422
    answer = await client.post(DOOR, files={"image": file_of("png")}, data={"prompt": "a", "url": "http://10.0.0.1/"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unknown_field")
    assert (await client.post(DOOR, json={"image": "x"})).status_code == 415
    assert (await client.get(DOOR)).status_code == 405

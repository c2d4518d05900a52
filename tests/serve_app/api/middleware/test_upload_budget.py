"""All forms in flight together stay within a budget, and a slow connection has the time that it needs."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from typing import Final

import httpx
import pytest
from PIL import Image

from serve_app.api.application import create_api
from serve_app.api.parsing import body as body_module
from serve_app.service import DiffusionService
from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.fakes import EVENTS, PATH, FakeBackend, http, slow, success, until

DOOR: Final = "/ads/v2/diffusion/image-to-image"
CUP: Final = {"prompt": "a red cup"}


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "PNG")
    return buffer.getvalue()


def ask(client: httpx.AsyncClient, headers: dict[str, str] | None = None) -> "asyncio.Task[httpx.Response]":
    request = client.post(DOOR, files={"init_image": picture()}, data=CUP, headers=headers)
    return asyncio.ensure_future(request)


@pytest.fixture
async def tight(service: DiffusionService) -> AsyncIterator[httpx.AsyncClient]:
    """Room for one form of `ask`, and not for two."""
    together = int(len(picture()) * 1.8)
    async with http(create_api(service, max_upload_bytes=together, max_uploads_in_flight_bytes=together)) as client:
        yield client


async def test_pictures_in_json_count_like_forms(tight: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = slow
    body = {"prompt": "a red cup", "init_images": [base64.b64encode(picture()).decode()], "width": 64, "height": 64}
    first = asyncio.ensure_future(tight.post("/sdapi/v1/img2img", json=body))
    await until(lambda: backend.running == 1)
    assert_problem(await tight.post("/sdapi/v1/img2img", json=body), 503, "overloaded")
    # What brings nothing is no upload.
    assert (await tight.get("/sdapi/v1/options")).status_code == 200
    assert (await tight.post("/sdapi/v1/interrupt")).status_code == 200
    await first


@pytest.mark.parametrize("headers", [{}, EVENTS])
async def test_a_form_too_many_is_refused_until_another_is_answered(
    headers: dict[str, str], tight: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = slow
    first = ask(tight, headers)
    await until(lambda: backend.running == 1)
    refused = await ask(tight)
    assert_problem(refused, 503, "overloaded")
    assert refused.headers["retry-after"]
    assert refused.headers["connection"] == "close"
    # A prompt is no upload.
    backend.script = success
    assert (await tight.post(PATH, json=CUP)).status_code == 200
    first.cancel()
    await until(lambda: backend.running == 0)
    assert (await ask(tight)).status_code == 200
    assert (await ask(tight)).status_code == 200


async def test_a_refused_form_gives_its_room_back(tight: httpx.AsyncClient) -> None:
    for _ in range(3):
        broken = await tight.post(DOOR, files={"init_image": b"x" * len(picture())}, data=CUP)
        assert_problem(broken, 422, "invalid_parameter")
    assert (await ask(tight)).status_code == 200


async def test_a_form_that_does_not_say_its_length_counts_as_the_longest(
    tight: httpx.AsyncClient, backend: FakeBackend
) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        started.set()
        yield b"--x"
        await go_on.wait()

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    unknown = asyncio.ensure_future(tight.post(DOOR, content=endless(), headers=headers))
    await started.wait()
    assert_problem(await ask(tight), 503, "overloaded")
    go_on.set()
    assert (await unknown).status_code in (400, 422)
    assert (await ask(tight)).status_code == 200
    assert len(backend.asked) == 1


async def test_a_long_form_has_the_time_of_a_slow_line_and_a_short_one_has_not(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def trickling() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x"
            await asyncio.sleep(0.05)

    async def sent(length: int) -> httpx.Response:
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(length)}
        return await client.post(DOOR, content=trickling(), headers=headers)

    monkeypatch.setattr(body_module, "READ_SECONDS", 0.05)
    assert_problem(await sent(4), 408, "request_timeout")
    assert_problem(await sent(1_000_000), 400, "invalid_form")

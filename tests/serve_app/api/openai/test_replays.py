"""The exact requests of programs that people already use: LibreChat and Open WebUI, by their sources."""

import base64
import io
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.serve_app.fakes import TINY, FakeBackend, http

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
KEY = {"Authorization": "Bearer sk-anything"}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, "PNG")
    return buffer.getvalue()


def first_image(answer: httpx.Response) -> str:
    """What both programs read: `url` before `b64_json`, and of the first image only."""
    assert answer.status_code == 200, answer.text
    first = answer.json()["data"][0]
    assert "url" not in first
    with Image.open(io.BytesIO(base64.b64decode(first["b64_json"]))) as picture:
        assert picture.format is not None
        return picture.format


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"output_format": "png"}, "PNG"),
        ({"output_format": "webp", "output_compression": 100}, "WEBP"),
        ({"output_format": "jpeg", "output_compression": 70}, "JPEG"),
    ],
)
async def test_librechat_generates(more: dict[str, Any], kind: str, client: httpx.AsyncClient) -> None:
    body = {
        "model": "gpt-image-1",
        "prompt": "a red cup on a blue background",
        "n": 1,
        "background": "auto",
        "quality": "auto",
        "size": "auto",
        **more,
    }
    assert first_image(await client.post(GENERATIONS, json=body, headers=KEY)) == kind


@pytest.mark.parametrize("size", ["1024x1024", "1536x1024", "1024x1536"])
async def test_librechat_asks_for_sizes_that_the_model_cannot_make(size: str) -> None:
    small = replace(TINY, max_pixels=128 * 128)
    async with http(create_api(DiffusionService(FakeBackend(models=(small,))))) as client:
        answer = await client.post(GENERATIONS, json={"prompt": "a cup", "size": size}, headers=KEY)
    assert first_image(answer) == "PNG"


async def test_librechat_edits(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    fields = {"model": "gpt-image-1", "prompt": "a green cup", "quality": "auto", "size": "auto"}
    files = [("image[]", ("image-1.png", png(), "image/png"))]
    assert first_image(await client.post(EDITS, data=fields, files=files, headers=KEY)) == "PNG"
    assert backend.asked[0].uploads is not None
    assert backend.asked[0].uploads.task == "image-to-image"


@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1.5"])
async def test_open_webui_generates(model: str, client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """Its administrators' own parameters are merged in at the top."""
    body = {"model": model, "prompt": "a red cup", "n": 2, "size": "128x128", "response_format": "b64_json", "seed": 3}
    assert first_image(await client.post(GENERATIONS, json=body, headers=KEY)) == "PNG"
    assert (backend.asked[0].params.seed, backend.asked[0].params.num_images) == (3, 2)


@pytest.mark.parametrize("name", ["image", "image[]"])
async def test_open_webui_edits(name: str, client: httpx.AsyncClient, backend: FakeBackend) -> None:
    fields = {
        "model": "gpt-image-1",
        "prompt": "a green cup",
        "n": "1",
        "size": "128x128",
        "background": "auto",
        "response_format": "b64_json",
    }
    files = [(name, ("image.png", png(), "image/png"))]
    assert first_image(await client.post(EDITS, data=fields, files=files, headers=KEY)) == "PNG"
    assert backend.asked[0].params.width == 128

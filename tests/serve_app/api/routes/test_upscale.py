"""Finished pictures are enlarged over HTTP: by a network of the configuration, or by interpolation."""

import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from PIL import Image

from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.inputs import Enlargement
from deployments.engine.protocol.spec import UpscalerSpec
from serve_app.api.application import create_api
from serve_app.labels.file_metadata import FileTexts, add_texts, read_texts
from serve_app.labels.source_type import MADE, xmp_of
from serve_app.service import DiffusionService
from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.fakes import PATH, FakeBackend, http

DOOR, LIST = "/ads/v2/diffusion/upscale", "/ads/v2/diffusion/upscalers"
NETWORK = "4x tiny"


def file_of(mode: str = "RGB", size: tuple[int, int] = (64, 48), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, (200, 100, 0, 128)[: len(mode)]).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with http(create_api(DiffusionService(backend, upscalers=[UpscalerSpec(NETWORK, "nowhere")]))) as client:
        yield client


async def upscale(client: httpx.AsyncClient, file: bytes | None = None, /, **form: str) -> httpx.Response:
    return await client.post(DOOR, data=form, files={"image": ("photo.png", file or file_of())})


def assert_refused(answer: httpx.Response, field: str) -> None:
    problem = assert_problem(answer, 422, "invalid_parameter")
    assert problem["error"]["param"] == field


def opened(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


async def test_the_first_network_is_the_default_and_all_are_listed(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    listed = (await client.get(LIST)).json()["upscalers"]
    assert listed == [{"name": NETWORK, "network": True}, {"name": "lanczos", "network": False}]
    made = opened(await upscale(client))
    assert (made.size, made.getpixel((3, 3))) == ((128, 96), (0, 200, 0))
    assert [(each.upscaler, each.size) for each in backend.enlarged] == [(NETWORK, (128, 96))]


async def test_lanczos_needs_no_replica_and_keeps_transparency(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    made = opened(await upscale(client, file_of("RGBA"), upscaler="lanczos", scale="1.5"))
    assert (made.size, made.mode) == ((96, 72), "RGBA")
    assert not backend.enlarged


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
async def test_the_file_has_the_format_asked_for(output_format: str, client: httpx.AsyncClient) -> None:
    answer = await upscale(client, output_format=output_format)
    assert answer.headers["content-type"] == f"image/{output_format}"
    assert opened(answer).format == output_format.upper()


async def test_what_a_file_said_of_how_it_was_made_is_said_again(client: httpx.AsyncClient) -> None:
    labelled = add_texts(file_of(), FileTexts("a cup\nSteps: 9", xmp_of(MADE)))
    for upscaler in (NETWORK, "lanczos"):
        texts = read_texts((await upscale(client, labelled, upscaler=upscaler)).content)
        assert texts.parameters == "a cup\nSteps: 9"


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"upscaler": "R-ESRGAN 4x+"}, "upscaler"),
        ({"upscaler": "latent"}, "upscaler"),
        ({"scale": "0"}, "scale"),
        ({"scale": "9"}, "scale"),
        ({"scale": "much"}, "scale"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_quality": "50"}, "output_quality"),
        ({"output_format": "jpeg", "output_quality": "101"}, "output_quality"),
        ({"prompt": "a cup"}, "prompt"),
    ],
)
async def test_what_is_wrong_is_named(form: dict[str, str], field: str, client: httpx.AsyncClient) -> None:
    assert_refused(await upscale(client, None, **form), field)


async def test_a_result_that_is_too_large_is_refused_before_anything_is_decoded(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    assert_refused(await upscale(client, file_of(size=(2048, 1024)), scale="5"), "scale")
    assert not backend.enlarged


async def test_a_replica_that_has_too_many_says_when_to_come_back(
    client: httpx.AsyncClient, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(enlargement: Enlargement) -> bytes:
        raise Overloaded("too many pictures are being enlarged", retry_after=7)

    monkeypatch.setattr(backend, "enlarge", refuse)
    answer = await upscale(client)
    assert_problem(answer, 503, "overloaded")
    assert answer.headers["retry-after"] == "7"


async def test_a_second_pass_takes_a_network_by_its_name(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body: dict[str, Any] = {"prompt": "a cup", "hires": {"upscaler": NETWORK}}
    assert (await client.post(PATH, json=body)).status_code == 200
    hires = backend.asked[-1].params.hires
    assert hires is not None
    assert hires.upscaler == NETWORK
    assert_refused(await client.post(PATH, json={"prompt": "a cup", "hires": {"upscaler": "nope"}}), "hires")

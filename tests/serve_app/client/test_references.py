"""Reference images from Python programs, through both clients."""

import asyncio
from typing import Any

import pytest

from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.settings import ReferenceSettings
from serve_app.api.application import create_api
from serve_app.client import AsyncDarkroomClient, DarkroomClient, DarkroomError
from serve_app.service import DiffusionService
from tests.serve_app.client.test_client import PICTURE, Through
from tests.serve_app.fakes import STYLED, FakeBackend
from tests.serve_app.servers import http_server


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(models=(STYLED,))


@pytest.fixture
def darkroom(backend: FakeBackend) -> DarkroomClient:
    return DarkroomClient("http://test", transport=Through(DiffusionService(backend)))


def test_they_go_along_with_text_and_with_a_picture(darkroom: DarkroomClient, backend: FakeBackend) -> None:
    seen: list[str] = []
    darkroom.generate(prompt="a cup", reference_images=[PICTURE], reference={"scale": 0.5})
    darkroom.generate(prompt="a cup", reference_images=[PICTURE], on_event=lambda event: seen.append(event.name))
    darkroom.generate(GenerationParams(prompt="a cup"), uploads=Uploads(image=PICTURE), reference_images=[PICTURE] * 2)
    list(darkroom.stream(prompt="a cup", uploads=Uploads(references=(PICTURE,))))
    assert seen[-1] == "done"
    brought = [request.uploads for request in backend.asked]
    assert all(brought)
    assert [len(uploads.references) for uploads in brought if uploads] == [1, 1, 2, 1]
    tasks = ["text-to-image", "text-to-image", "image-to-image", "text-to-image"]
    assert [uploads.task for uploads in brought if uploads] == tasks
    assert [request.params.reference for request in backend.asked] == [
        ReferenceSettings(adapter="style", scale=scale) for scale in (0.5, 1.0, 1.0, 1.0)
    ]


def test_the_asynchronous_client_takes_them_as_well(backend: FakeBackend) -> None:
    async def ask(url: str, **more: Any) -> None:
        async with AsyncDarkroomClient(url) as client:
            await client.generate(prompt="a cup", reference_images=[PICTURE], **more)

    with http_server(create_api(DiffusionService(backend))) as url:
        asyncio.run(ask(url))
        asyncio.run(ask(url, on_event=lambda event: event))
    assert [request.uploads.references for request in backend.asked if request.uploads] == [(PICTURE,), (PICTURE,)]


def test_a_set_is_restyled_in_one_call_and_what_failed_says_why(backend: FakeBackend) -> None:
    async def ask(url: str) -> None:
        async with AsyncDarkroomClient(url) as client:
            (entry,) = await client.restyle([PICTURE], [PICTURE], prompt="a cup")
            assert entry.images[0].picture().size == (64, 64)

    with http_server(create_api(DiffusionService(backend))) as url:
        with DarkroomClient(url) as client:
            made, broken = client.restyle([PICTURE, b"no picture"], [PICTURE], strength=0.5, reference={"scale": 0.5})
            job_id = client.submit_restyle([PICTURE], [PICTURE], idempotency_key="once")
            assert client.submit_restyle([PICTURE], [PICTURE], idempotency_key="once") == job_id
            with pytest.raises(DarkroomError, match="at least one picture"):
                client.restyle([], [PICTURE])
        asyncio.run(ask(url))
    assert (len(made.images), made.error) == (1, None)
    assert broken.error is not None
    assert broken.error.field == "requests/1/images"
    assert {request.params.prompt for request in backend.asked} == {"", "a cup"}

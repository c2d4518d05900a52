"""A set of pictures restyled after the same reference images: one call, one job, one entry for each picture."""

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest
from PIL import Image

from deployments.engine.protocol.errors import NumericalFailure
from deployments.engine.protocol.events import Failed
from deployments.engine.protocol.settings import ReferenceSettings
from serve_app.api.application import create_api
from serve_app.config.sections import JobsConfig, Limits, LimitsConfig
from serve_app.gateway.rate_limits import RateLimits
from serve_app.gateway.setup import Gateway
from serve_app.jobs.pictures import MAX_SET
from serve_app.service import DiffusionService
from tests.serve_app.api.routes.test_cancel import Named
from tests.serve_app.fakes import EVENTS, STYLED, TINY, FakeBackend, http, slow, success

DOOR: Final = "/ads/v2/diffusion/style-transfers"
BATCH: Final = "/ads/v2/diffusion/batch-generate"


def picture(colour: str, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


SET: Final = (picture("red"), picture("green", (128, 64)), picture("blue"))
LOOK: Final = picture("gold")


def text_of(file: bytes) -> str:
    return base64.b64encode(file).decode()


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(models=(TINY, STYLED))


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(DiffusionService(backend), jobs_config=JobsConfig(max_images=100))
    async with http(app) as client:
        yield client
    await app.state.jobs.stop()


async def ask(
    client: httpx.AsyncClient, *images: bytes, references: tuple[bytes, ...] = (LOOK,), **fields: Any
) -> httpx.Response:
    files: list[Any] = [("images", file) for file in images or SET]
    files += [("reference_images", file) for file in references]
    headers = fields.pop("headers", {})
    return await client.post(DOOR, files=files, data=fields, headers=headers)


async def ended(client: httpx.AsyncClient, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    async with asyncio.timeout(5):
        while (job := (await client.get(answer.headers["location"])).json())["state"] in ("queued", "running"):
            await asyncio.sleep(0.01)
    found: dict[str, Any] = job
    return found


async def test_each_picture_becomes_an_image_in_its_own_shape_after_the_same_references(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    job = await ended(client, await ask(client, reference='{"scale": 0.7}', strength="0.5", seed="7"))
    assert (job["state"], job["entries"], job["succeeded"]) == ("succeeded", 3, 3)
    asked = sorted(backend.asked, key=lambda request: request.name)
    for request, file in zip(asked, SET, strict=True):
        assert request.uploads is not None
        assert (request.uploads.image, request.uploads.references) == (file, (LOOK,))
        params = request.params
        assert (params.prompt, params.strength, params.seed, params.model_name) == ("", 0.5, 7, "styled")
        assert params.reference == ReferenceSettings(adapter="style", scale=0.7)
    sizes = [(image["width"], image["height"]) for entry in job["results"] for image in entry["images"]]
    assert sizes == [(64, 64), (88, 64), (64, 64)]
    shown = await client.get(job["results"][1]["images"][0]["url"])
    assert Image.open(io.BytesIO(shown.content)).size == (88, 64)


async def test_json_says_the_same_as_a_form(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {
        "images": [text_of(file) for file in SET],
        "reference_images": [text_of(LOOK)],
        "prompt": None,
        "strength": 0.5,
        "fit": "pad",
    }
    job = await ended(client, await client.post(DOOR, json=body))
    assert job["succeeded"] == 3
    assert {request.uploads.fit for request in backend.asked if request.uploads} == {"pad"}
    # Drawn once: they are a set.
    assert len({request.params.seed for request in backend.asked}) == 1


async def test_a_picture_that_is_none_fails_alone(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda request: (
        [Failed(request.id, NumericalFailure("not finite"))]
        if request.uploads and request.uploads.image == SET[2]
        else success(request)
    )
    job = await ended(client, await ask(client, SET[0], b"GIF89a", SET[2]))
    assert [entry["status"] for entry in job["results"]] == [200, 422, 500]
    assert job["results"][1]["errors"][0]["pointer"] == "#/requests/1/images"
    assert (job["state"], job["succeeded"], job["failed"]) == ("succeeded", 1, 2)


async def test_a_picture_whose_shape_asks_for_too_much_fails_alone(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    tall = picture("red", (64, 256))
    job = await ended(client, await ask(client, SET[0], tall, SET[2], width="768"))
    assert [entry["status"] for entry in job["results"]] == [200, 422, 200]
    assert job["results"][1]["errors"][0]["pointer"] == "#/requests/1/width"
    assert "pixels" in job["results"][1]["detail"]
    both = await ask(client, SET[0], tall, width="2048", height="2048")
    assert (both.status_code, both.json()["error"]["param"]) == (422, "width")


async def test_equal_pictures_are_made_once(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    job = await ended(client, await ask(client, SET[0], SET[1], SET[0]))
    assert (job["succeeded"], len(backend.asked)) == (3, 2)


@pytest.mark.parametrize(
    ("images", "references", "fields", "param"),
    [
        ((SET[0],), (), {}, "reference_images"),
        ((SET[0],), (b"GIF89a",), {}, "reference_images"),
        ((SET[0],), (LOOK,) * 5, {}, "reference_images"),
        ((SET[0],) * (MAX_SET + 1), (LOOK,), {}, "images"),
        ((SET[0],), (LOOK,), {"model_name": "tiny"}, "reference_images"),
        ((SET[0],), (LOOK,), {"reference": '{"weights": [1, 1]}'}, "reference"),
        ((SET[0],), (LOOK,), {"strength": "2"}, "strength"),
        ((SET[0],), (LOOK,), {"fit": "bend"}, "fit"),
        ((SET[0],), (LOOK,), {"mask_feather": "3"}, "mask_feather"),
        ((SET[0],) * 7, (LOOK,), {"num_images": "16"}, "num_images"),
        ((SET[0],), (LOOK,), {"webhook_url": "https://example.com/hook"}, "webhook_url"),
    ],
    ids=["none", "no picture", "five", "large set", "model", "weights", "strength", "fit", "mask", "many", "webhook"],
)
async def test_what_all_pictures_share_is_refused_as_a_whole(
    images: tuple[bytes, ...],
    references: tuple[bytes, ...],
    fields: dict[str, str],
    param: str,
    client: httpx.AsyncClient,
    backend: FakeBackend,
) -> None:
    answer = await ask(client, *images, references=references, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param), answer.text
    assert backend.asked == []


async def test_without_pictures_there_is_nothing_to_restyle(client: httpx.AsyncClient) -> None:
    answer = await client.post(DOOR, json={"reference_images": [text_of(LOOK)]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "images")


async def test_it_is_followed_and_cancelled_as_other_jobs_are(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda request: (
        slow(request) if request.uploads and request.uploads.image == SET[2] else success(request)
    )
    url = (await ask(client)).headers["location"]
    async with asyncio.timeout(5):
        while (await client.get(url)).json()["succeeded"] < 2:
            await asyncio.sleep(0.01)
    job = (await client.delete(url)).json()
    assert (job["state"], job["succeeded"]) == ("cancelled", 2)
    told = (await client.get(f"{url}/events", headers=EVENTS)).text
    assert (told.count("event: entry"), told.count("event: done")) == (2, 1)


async def test_an_idempotency_key_makes_it_one_job(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    once = {"Idempotency-Key": "restyle"}
    first, again = await ask(client, headers=once), await ask(client, headers=once)
    other = await ask(client, SET[0], headers=once)
    assert (await ended(client, first))["id"] == again.json()["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert len(backend.asked) == 3


async def test_it_costs_what_its_entries_cost(backend: FakeBackend) -> None:
    limits = LimitsConfig(per_address=Limits(cost_per_minute=1))
    gateway = Gateway(limits=RateLimits(limits, None, DiffusionService(backend).gateway_counts, time.monotonic))
    app = create_api(DiffusionService(backend), gateway=gateway)
    async with http(app) as client:
        # 64 x 64 x 50 steps are 0.2 megapixel-steps.
        assert (await ask(client, SET[0], SET[2])).status_code == 202
        answer = await ask(client, *SET)
        assert (answer.status_code, answer.json()["error"]["param"]) == (429, "cost_per_minute")
    await app.state.jobs.stop()


async def test_a_tenant_whose_pictures_wait_is_told_when_to_come_back(backend: FakeBackend) -> None:
    backend.script = slow
    app = create_api(DiffusionService(backend), jobs_config=JobsConfig(picture_bytes_per_tenant=2**20))
    async with http(Named(app)) as client:
        client.headers["x-tenant"] = "me"
        assert (await ask(client, SET[0] + bytes(2**20))).status_code == 202
        refused = await ask(client, SET[0])
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
        assert refused.json()["error"]["param"] == "unfinished_pictures"
    await app.state.jobs.stop()


async def test_a_batchs_reference_images_are_all_entries(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    entries = [{"prompt": "a cup", "seed": 1}, {"prompt": "a shoe", "seed": 1, "reference": {"scale": 0.25}}]
    body = {"requests": entries, "reference_images": [text_of(LOOK)]}
    answer = (await client.post(BATCH, json=body)).json()
    assert answer["succeeded"] == 2, answer
    job = await ended(client, await client.post(BATCH, json=body, headers={"Prefer": "respond-async"}))
    assert job["succeeded"] == 2
    assert [request.uploads.references for request in backend.asked if request.uploads] == [(LOOK,)] * 4
    assert {request.params.reference.scale for request in backend.asked if request.params.reference} == {1.0, 0.25}
    broken = await client.post(BATCH, json=body | {"reference_images": [text_of(b"GIF89a")]})
    assert (broken.status_code, broken.json()["error"]["param"]) == (422, "reference_images")
    without = (await client.post(BATCH, json={"requests": entries})).json()
    assert [entry["status"] for entry in without["results"]] == [200, 422]

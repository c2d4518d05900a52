"""Every route that gives pictures is in docs/labels.md, which says whether they are labelled, and that is true."""

import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from PIL import Image

from serve_app.api.application import create_api
from serve_app.api.scopes import RULES
from serve_app.config.labels import LabelsConfig
from serve_app.config.sections import ResultUrlsConfig
from serve_app.labels.labeller import Labeller
from serve_app.service import DiffusionService
from serve_app.store.result_files import ResultFiles
from tests.deployments.watermark.pictures import photo
from tests.serve_app.fakes import FakeBackend, http
from tests.serve_app.labels.files import file_of
from tests.serve_app.labels.requests import SIDE, photos

PAGE: Final = Path(__file__).parents[3] / "docs" / "labels.md"
BASE: Final = "/ads/v2/diffusion"
NO_PICTURES: Final = {
    f"{BASE}/verify",
    f"{BASE}/jobs",
    f"{BASE}/style-transfers",
    f"{BASE}/requests/{{request_id}}",
    "/sdapi/v1/png-info",
}
"""Routes for which the same key is needed as for pictures."""

FIELDS: Final = {"prompt": "a red cup", "width": SIDE, "height": SIDE, "seed": 7, "num_inference_steps": 8}
FORM: Final = {name: str(value) for name, value in FIELDS.items()}
A1111: Final = {"prompt": "a red cup", "width": SIDE, "height": SIDE, "steps": 8}
Give = Callable[[httpx.AsyncClient], Awaitable[bytes]]


def surfaces() -> Mapping[str, str]:
    """The page's table: whether a route's pictures are labelled, by its path."""
    _, _, section = PAGE.read_text().partition("\n## Where pictures come out\n")
    rows = re.findall(r"^\| (`/.*?) \| (yes|no|as they came)\b", section.partition("\n## ")[0], re.MULTILINE)
    return {path: said for paths, said in rows for path in re.findall(r"`([^`]+)`", paths)}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    service = DiffusionService(FakeBackend(photos), labeller=Labeller(LabelsConfig()))
    app = create_api(service, result_files=ResultFiles(ResultUrlsConfig(), None))
    async with http(app) as client:
        yield client
    await app.state.jobs.stop()


def uploaded() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo(SIDE)).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(file: bytes) -> str:
    return base64.b64encode(file).decode()


async def posted(client: httpx.AsyncClient, path: str, **request: Any) -> httpx.Response:
    answer = await client.post(path, **request)
    assert answer.status_code in (200, 202), answer.text
    return answer


def form(name: str, part: str, **fields: str) -> Give:
    async def give(client: httpx.AsyncClient) -> bytes:
        sent: dict[str, Any] = {"files": {part: uploaded()}, "data": FORM | fields, "headers": {"Accept": "image/png"}}
        return (await posted(client, f"{BASE}/{name}", **sent)).content

    return give


async def made(client: httpx.AsyncClient) -> bytes:
    return (await posted(client, f"{BASE}/text-to-image", json=FIELDS, headers={"Accept": "image/png"})).content


async def of_a_batch(client: httpx.AsyncClient) -> bytes:
    answer = await posted(client, f"{BASE}/batch-generate", json={"requests": [FIELDS]})
    return base64.b64decode(answer.json()["results"][0]["images"][0]["data"])


async def finished_job(client: httpx.AsyncClient) -> str:
    headers = {"Prefer": "respond-async"}
    answer = await posted(client, f"{BASE}/batch-generate", json={"requests": [FIELDS]}, headers=headers)
    place = answer.headers["location"]
    async with asyncio.timeout(20):
        while (await client.get(place)).json()["state"] in ("queued", "running"):
            await asyncio.sleep(0.02)
    return str(place)


async def of_a_job(client: httpx.AsyncClient) -> bytes:
    return (await client.get(f"{await finished_job(client)}/images/0/0")).content


async def linked_by_a_job(client: httpx.AsyncClient) -> bytes:
    link = (await client.get(await finished_job(client))).json()["results"][0]["images"][0]["url"]
    return (await client.get(link)).content


async def linked_by_a_job_s_events(client: httpx.AsyncClient) -> bytes:
    lines = (await client.get(f"{await finished_job(client)}/events")).text.splitlines()
    entry = next(json.loads(line[5:]) for line in lines if line.startswith("data:") and '"images"' in line)
    return (await client.get(entry["images"][0]["url"])).content


async def of_openai(client: httpx.AsyncClient) -> bytes:
    body = {"prompt": "a red cup", "size": f"{SIDE}x{SIDE}"}
    return base64.b64decode((await posted(client, "/v1/images/generations", json=body)).json()["data"][0]["b64_json"])


async def edited_by_openai(client: httpx.AsyncClient) -> bytes:
    fields = {"prompt": "a red cup", "size": f"{SIDE}x{SIDE}"}
    answer = await posted(client, "/v1/images/edits", files={"image": uploaded()}, data=fields)
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


async def at_an_address(client: httpx.AsyncClient) -> bytes:
    body = {"prompt": "a red cup", "size": f"{SIDE}x{SIDE}", "response_format": "url"}
    url = (await posted(client, "/v1/images/generations", json=body)).json()["data"][0]["url"]
    return (await client.get(url)).content


def a1111(path: str, **fields: Any) -> Give:
    async def give(client: httpx.AsyncClient) -> bytes:
        return base64.b64decode((await posted(client, path, json=A1111 | fields)).json()["images"][0])

    return give


def enlarged(path: str, member: str, name: str) -> Give:
    async def give(client: httpx.AsyncClient) -> bytes:
        file = encoded(await made(client))
        body = {name: [{"data": file, "name": "x.png"}] if name == "imageList" else file, "upscaling_resize": 1.5}
        found = (await posted(client, path, json=body)).json()[member]
        return base64.b64decode(found if isinstance(found, str) else found[0])

    return give


async def upscaled(client: httpx.AsyncClient) -> bytes:
    fields = {"upscaler": "lanczos", "scale": "1.5", "output_format": "jpeg"}
    return (await posted(client, f"{BASE}/upscale", files={"image": await made(client)}, data=fields)).content


def inferred(path: str) -> Give:
    async def give(client: httpx.AsyncClient) -> bytes:
        parameters = {name: FIELDS[name] for name in ("width", "height", "seed")}
        return (await posted(client, path, json={"inputs": "a red cup", "parameters": parameters})).content

    return give


SINGLE, BATCH = "/sdapi/v1/extra-single-image", "/sdapi/v1/extra-batch-images"
LABELLED: Final[Mapping[str, Give]] = {
    f"{BASE}/text-to-image": made,
    f"{BASE}/image-to-image": form("image-to-image", "init_image"),
    f"{BASE}/inpaint": form("inpaint", "image", mask_type="full"),
    f"{BASE}/controlnet": form("controlnet", "control_image", controlnet_type="canny"),
    f"{BASE}/batch-generate": of_a_batch,
    f"{BASE}/upscale": upscaled,
    f"{BASE}/jobs/{{job_id}}": linked_by_a_job,
    f"{BASE}/jobs/{{job_id}}/events": linked_by_a_job_s_events,
    f"{BASE}/jobs/{{job_id}}/images/{{entry}}/{{image}}": of_a_job,
    "/v1/images/generations": of_openai,
    "/v1/images/edits": edited_by_openai,
    "/results/{file_id}": at_an_address,
    "/sdapi/v1/txt2img": a1111("/sdapi/v1/txt2img"),
    "/sdapi/v1/img2img": a1111("/sdapi/v1/img2img", init_images=[encoded(uploaded())]),
    SINGLE: enlarged(SINGLE, "image", "image"),
    BATCH: enlarged(BATCH, "images", "imageList"),
    "/hf/{model}": inferred("/hf/tiny"),
    "/hf/{owner}/{model}": inferred("/hf/maker/tiny"),
}


def test_the_page_lists_every_route_that_gives_pictures() -> None:
    listed = surfaces()
    assert {path for path, need in RULES.items() if need == "generate"} - NO_PICTURES <= set(listed) <= set(RULES)
    assert {path for path, said in listed.items() if said != "no"} == set(LABELLED)


def test_every_route_whose_answer_is_a_picture_is_on_the_page() -> None:
    paths = create_api(DiffusionService(FakeBackend())).openapi()["paths"]
    giving = {
        path
        for path, operations in paths.items()
        for operation in operations.values()
        for media_type in operation["responses"].get("200", {}).get("content", {})
        if media_type.startswith("image/")
    }
    assert f"{BASE}/hint" in giving
    assert giving <= set(surfaces())


@pytest.mark.parametrize("path", LABELLED)
async def test_what_the_page_says_is_labelled_is(path: str, client: httpx.AsyncClient) -> None:
    file = await LABELLED[path](client)
    found = (await posted(client, f"{BASE}/verify", files={"image": file})).json()
    assert found["ai_made"]
    assert (found["c2pa"]["state"], found["c2pa"]["signed_by_this_server"]) == ("valid", True)
    assert found["digital_source_type"] in ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia")
    assert found["watermark"]["payload"] == "44524b4d"
    assert found["parameters"]["fields"]["Prompt"] == "a red cup"


@pytest.mark.parametrize("path", [SINGLE, BATCH])
async def test_a_photo_that_is_enlarged_is_not_called_a_machine_s(path: str, client: httpx.AsyncClient) -> None:
    name, member = ("image", "image") if path == SINGLE else ("imageList", "images")
    body: dict[str, Any] = {name: encoded(file_of("png"))}
    if path == BATCH:
        body = {name: [{"data": encoded(file_of("png"))}]}
    given = (await posted(client, path, json=body)).json()[member]
    file = base64.b64decode(given if path == SINGLE else given[0])
    found = (await posted(client, f"{BASE}/verify", files={"image": file})).json()
    assert (found["ai_made"], found["c2pa"]["state"], found["digital_source_type"]) == (False, "none", None)

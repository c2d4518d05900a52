"""Images that are kept back, over every surface: told as filtered, without a pixel, and never kept."""

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import openai
import pytest
import webuiapi
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from deployments.engine.protocol.errors import Filtered, SafetyCheckFailed
from deployments.engine.protocol.events import ImageDone
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.safety import CheckerSpec, Finding, SafetyPolicy, SafetySpec
from serve_app.api.application import create_api
from serve_app.cache.entry import pack, unpack
from serve_app.cache.result_cache import ResultCache
from serve_app.client import DarkroomClient, DarkroomError
from serve_app.config.sections import CacheConfig
from serve_app.generation.fingerprint import fingerprint_of
from serve_app.service import DiffusionService
from tests.serve_app.fakes import EVENTS, PATH, TINY, FakeBackend, Step, failing, http, success
from tests.serve_app.servers import http_server

CUP = {"prompt": "a red cup", "seed": 7}
FILTERED = Filtered("nsfw")
TOLD = {
    "index": 1,
    "status": "filtered",
    "code": "content_filtered",
    "message": "the image was filtered by this model's safety policy: nsfw",
    "retryable": False,
}


def flagged(request: Request) -> list[Step]:
    """As a report delivers them: the first image passed, the others did not."""
    return [
        replace(event, safety=Finding("flagged" if event.index else "passed", "nsfw", 0.25))
        if isinstance(event, ImageDone)
        else event
        for event in success(request)
    ]


@pytest.fixture
def url(service: DiffusionService) -> Iterator[str]:
    with http_server(create_api(service)) as url:
        yield url


async def test_json_tells_which_image_was_filtered(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = failing(FILTERED, 1)
    answer = (await client.post(PATH, json=CUP | {"num_images": 3})).json()
    assert [image["index"] for image in answer["images"]] == [0, 2]
    assert answer["failures"] == [TOLD]


@pytest.mark.parametrize("accept", ["application/json", "image/png"])
async def test_nothing_but_filtered_images_is_a_problem_of_its_own(
    client: httpx.AsyncClient, backend: FakeBackend, accept: str
) -> None:
    backend.script = failing(FILTERED, 0)
    answer = await client.post(PATH, json=CUP, headers={"Accept": accept})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "content_filtered")
    assert answer.headers["content-type"] == "application/problem+json"
    backend.script = failing(SafetyCheckFailed(), 0)
    answer = await client.post(PATH, json=CUP)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "safety_check_failed")
    assert (answer.headers["x-should-retry"], int(answer.headers["retry-after"])) == ("true", 30)


async def test_a_stream_tells_it_as_it_happens(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = failing(FILTERED, 1)
    text = (await client.post(PATH, json=CUP | {"num_images": 2}, headers=EVENTS)).text
    failed = next(block for block in text.split("\n\n") if block.startswith("event: failed"))
    assert json.loads(failed.partition("data: ")[2].partition("\n")[0]) == TOLD


async def test_batches_and_jobs_tell_it_by_entry(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = failing(FILTERED, 1)
    body = {"requests": [CUP | {"num_images": 2}, CUP]}
    answer = (await client.post("/ads/v2/diffusion/batch-generate", json=body)).json()
    first, second = answer["results"]
    assert (len(first["images"]), first["failures"]) == (1, [TOLD])
    assert "failures" not in second
    backend.script = failing(FILTERED, 0, 1)
    answer = (await client.post("/ads/v2/diffusion/batch-generate", json=body)).json()
    assert [entry["status"] for entry in answer["results"]] == [422, 422]
    assert answer["results"][0]["error"]["code"] == "content_filtered"


async def test_a_job_has_no_link_to_a_filtered_image(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = failing(FILTERED, 1)
    body = {"requests": [CUP | {"num_images": 2}]}
    job = (await client.post("/ads/v2/diffusion/batch-generate", json=body, headers={"Prefer": "respond-async"})).json()
    async with asyncio.timeout(20):
        while (told := (await client.get(job["url"])).json())["state"] not in ("succeeded", "failed"):
            await asyncio.sleep(0.01)
    (entry,) = told["results"]
    assert [image["index"] for image in entry["images"]] == [0]
    assert entry["failures"] == [TOLD]
    assert (await client.get(entry["images"][0]["url"])).status_code == 200
    assert (await client.get(entry["images"][0]["url"][:-1] + "1")).status_code == 404


def test_openais_client_raises_what_it_raises_for_openais_own_moderation(url: str, backend: FakeBackend) -> None:
    backend.script = failing(FILTERED, 0)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(prompt="a red cup")
        assert (caught.value.code, caught.value.type) == ("moderation_blocked", "image_generation_user_error")
        backend.script = failing(FILTERED, 1)
        made = client.images.generate(prompt="a red cup", n=2)
        assert len(made.data or []) == 1
        assert made.model_dump()["failures"] == [TOLD]
        with pytest.raises(openai.APIError) as caught_in_stream:
            for _ in client.images.generate(prompt="a red cup", n=2, stream=True):
                pass
        assert caught_in_stream.value.code == "moderation_blocked"


def test_a1111s_client_gets_the_images_that_passed_or_an_error_and_no_black_one(url: str, backend: FakeBackend) -> None:
    client = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1")
    backend.script = failing(FILTERED, 1)
    made = client.txt2img(prompt="a red cup", batch_size=3, seed=5)
    assert (len(made.images), made.info["all_seeds"], made.info["failures"]) == (2, [5, 7], [TOLD])
    backend.script = failing(FILTERED, 0)
    with pytest.raises(RuntimeError, match="content_filtered"):
        client.txt2img(prompt="a red cup")


def test_hugging_faces_client_raises(url: str, backend: FakeBackend) -> None:
    backend.script = failing(FILTERED, 0)
    with pytest.raises(HfHubHTTPError, match="422"):
        InferenceClient(model=f"{url}/hf/tiny", token="none").text_to_image("a red cup")


def test_our_client_raises_and_hands_over_the_images_that_passed(url: str, backend: FakeBackend) -> None:
    backend.script = failing(FILTERED, 1)
    with DarkroomClient(url) as client:
        for watched in (None, lambda _: None):
            with pytest.raises(DarkroomError) as caught:
                client.generate(prompt="a red cup", num_images=3, on_event=watched)
            assert (caught.value.code, [image.index for image in caught.value.images]) == ("content_filtered", [0, 2])
        backend.script = flagged
        images = client.generate(prompt="a red cup", num_images=2)
    assert [image.safety and image.safety["status"] for image in images] == ["passed", "flagged"]


async def test_a_report_is_told_beside_each_image(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = flagged
    answer = (await client.post(PATH, json=CUP | {"num_images": 2})).json()
    assert [image["safety"] for image in answer["images"]] == [
        {"status": "passed", "category": "nsfw", "score": 0.25},
        {"status": "flagged", "category": "nsfw", "score": 0.25},
    ]
    answer = (await client.post("/v1/images/generations", json={"prompt": "a red cup", "n": 2})).json()
    assert [image["safety"]["status"] for image in answer["data"]] == ["passed", "flagged"]


async def test_statistics_count_filtered_images_apart(
    client: httpx.AsyncClient, service: DiffusionService, backend: FakeBackend
) -> None:
    backend.script = failing(FILTERED, 0, 2)
    await client.post(PATH, json=CUP | {"num_images": 3})
    stats = await service.get_generation_stats()
    assert (stats["images"], stats["filtered"], stats["failures"]) == (1, 2, 0)


async def test_what_was_filtered_is_made_anew_and_never_kept() -> None:
    backend = FakeBackend(failing(FILTERED, 1))
    async with (
        DiffusionService(backend, cache=ResultCache(CacheConfig())) as service,
        http(create_api(service)) as client,
    ):
        for _ in range(2):
            answer = await client.post(PATH, json=CUP | {"num_images": 2})
            assert answer.json()["cached"] is False
        assert len(backend.asked) == 2
        assert (await service.get_generation_stats())["total_cache_entries"] == 0


async def test_a_report_is_kept_with_its_images() -> None:
    backend = FakeBackend(flagged)
    cache = ResultCache(CacheConfig())
    async with DiffusionService(backend, cache=cache) as service, http(create_api(service)) as client:
        first = (await client.post(PATH, json=CUP | {"num_images": 2})).json()
        again = (await client.post(PATH, json=CUP | {"num_images": 2})).json()
    assert (first["cached"], again["cached"]) == (False, True)
    assert again["images"] == first["images"]
    assert base64.b64decode(again["images"][0]["data"])


async def test_a_report_survives_redis(backend: FakeBackend) -> None:
    cache = ResultCache(CacheConfig())
    backend.script = flagged
    async with DiffusionService(backend, cache=cache) as service, http(create_api(service)) as client:
        await client.post(PATH, json=CUP | {"num_images": 2})
    (entry,) = cache._memory._entries.values()
    place, key = "here", b"k" * 32
    assert [image.safety for image in unpack(place, pack(place, entry, key), key).images] == [
        Finding("passed", "nsfw", 0.25),
        Finding("flagged", "nsfw", 0.25),
    ]


def test_what_was_made_under_one_policy_is_not_served_under_another(backend: FakeBackend) -> None:
    def spec(policy: SafetyPolicy, *checkers: str) -> SafetySpec:
        return SafetySpec(policy, tuple(CheckerSpec(name, class_path=f"a:{name}") for name in checkers))

    request = Request("r", GenerationParams(prompt="a cup", seed=1, model_name="tiny"))
    policies = [SafetySpec(), spec("report", "A"), spec("required", "A"), spec("required", "A", "B")]
    keys = [fingerprint_of(request, replace(TINY, safety=policy), None).key for policy in policies]
    assert len(set(keys)) == len(keys)


async def test_models_tell_their_policy() -> None:
    safety = SafetySpec("required", (CheckerSpec("nsfw"),))
    backend = FakeBackend(models=(replace(TINY, safety=safety), replace(TINY, name="free", aliases=())))
    async with DiffusionService(backend) as service, http(create_api(service)) as client:
        models = (await client.get("/ads/v2/diffusion/models")).json()["models"]
    assert [model["safety"] for model in models] == ["required", "off"]

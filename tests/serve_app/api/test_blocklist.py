"""The blocklist over every surface: refused before any work, by field and rule, and counted once."""

from collections.abc import AsyncIterator, Iterator

import httpx
import openai
import pytest
import webuiapi
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from serve_app.api.application import create_api
from serve_app.generation.blocklist import Blocklist, BlockRule
from serve_app.generation.prompts import PromptRules
from serve_app.service import DiffusionService
from tests.serve_app.fakes import PATH, FakeBackend, http
from tests.serve_app.servers import http_server

BATCH = "/ads/v2/diffusion/batch-generate"


@pytest.fixture
async def service(backend: FakeBackend) -> AsyncIterator[DiffusionService]:
    rules = PromptRules(blocklist=Blocklist([BlockRule("brands", ("acme",))]))
    async with DiffusionService(backend, prompts=rules) as made:
        yield made


@pytest.fixture
async def client(service: DiffusionService) -> AsyncIterator[httpx.AsyncClient]:
    async with http(create_api(service, wildcards={"brand": ["acme"]})) as made:
        yield made


@pytest.fixture
def url(service: DiffusionService) -> Iterator[str]:
    with http_server(create_api(service)) as url:
        yield url


async def test_the_problem_names_field_and_rule(
    client: httpx.AsyncClient, backend: FakeBackend, service: DiffusionService
) -> None:
    answer = await client.post(PATH, json={"prompt": "an acme cup"})
    problem = answer.json()
    assert (answer.status_code, problem["error"]["code"], problem["error"]["param"]) == (
        422,
        "prompt_blocked",
        "prompt",
    )
    assert problem["errors"][0]["pointer"] == "#/prompt"
    assert "brands" in problem["detail"]
    assert "acme" not in answer.text
    assert not backend.asked
    assert (await service.get_generation_stats())["blocked_prompts"] == {"brands": 1}
    metrics = {(sample.metric.name, sample.values): sample.now for sample in service.samples()}
    assert metrics["diffusion_blocked_prompts", ("brands",)] == 1


async def test_entries_of_a_batch_are_refused_one_by_one_after_their_expansion(
    client: httpx.AsyncClient, backend: FakeBackend, service: DiffusionService
) -> None:
    requests = [{"prompt": "a cup", "seed": 1}, {"prompt": "acme", "seed": 1}, {"prompt": "{a|an __brand__} mug"}]
    body = {"requests": requests, "expand": {"variants": "all"}}
    answer = (await client.post(BATCH, json=body)).json()
    assert [entry["status"] for entry in answer["results"]] == [200, 422, 200, 422]
    assert answer["results"][3]["error"]["param"] == "requests/3/prompt"
    assert {request.params.prompt for request in backend.asked} == {"a cup", "a mug"}
    assert (await service.get_generation_stats())["blocked_prompts"] == {"brands": 2}
    job = (await client.post(BATCH, json={"requests": requests[:2]}, headers={"Prefer": "respond-async"})).json()
    assert (job["entries"], job["failed"]) == (2, 1)
    assert (await service.get_generation_stats())["blocked_prompts"] == {"brands": 3}


async def test_tokens_are_counted_whatever_they_say(client: httpx.AsyncClient, service: DiffusionService) -> None:
    assert (await client.post("/ads/v2/diffusion/tokens", json={"prompt": "an acme cup"})).status_code == 200
    assert (await service.get_generation_stats())["blocked_prompts"] == {"brands": 0}


def test_other_ecosystems_clients_raise(url: str, backend: FakeBackend) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with client, pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="an acme cup")
    assert (caught.value.code, caught.value.param) == ("moderation_blocked", "prompt")
    with pytest.raises(RuntimeError, match="prompt_blocked"):
        webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1").txt2img(prompt="an acme cup")
    with pytest.raises(HfHubHTTPError, match="422"):
        InferenceClient(model=f"{url}/hf/tiny", token="none").text_to_image("an acme cup")
    assert not backend.asked

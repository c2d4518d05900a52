"""Learnt embeddings over HTTP: listed, found in prompts wherever these come from, and part of what a result is."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import webuiapi

from deployments.embeddings import EmbeddingRegistry, EmbeddingSpec
from deployments.engine.protocol.files.embeddings import EmbeddingFile
from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.config.sections import CacheConfig
from serve_app.config.server import AppConfig
from serve_app.generation.prompts import PromptRules
from serve_app.generation.templates import PromptTemplate
from serve_app.service import DiffusionService
from tests.deployments.engine.embedding_files import save_embedding
from tests.serve_app.fakes import PATH, FakeBackend, http
from tests.serve_app.servers import http_server


@pytest.fixture
def toy(tmp_path: Path) -> EmbeddingFile:
    return save_embedding(tmp_path, "toy", 3, token="<toy>")


@pytest.fixture
async def service(backend: FakeBackend, toy: EmbeddingFile, tmp_path: Path) -> AsyncIterator[DiffusionService]:
    (tmp_path / "watched").mkdir()
    (tmp_path / "watched" / "broken.safetensors").write_bytes(b"no")
    registry = EmbeddingRegistry([EmbeddingSpec("toy", toy.path, "<toy>")], tmp_path / "watched")
    rules = PromptRules({"t": PromptTemplate("t", "a {what} cup", "<toy>")}, embeddings=registry)
    async with DiffusionService(backend, prompts=rules, cache=ResultCache(CacheConfig())) as made:
        yield made


async def test_they_are_listed_with_what_prompts_call_them(client: httpx.AsyncClient, toy: EmbeddingFile) -> None:
    answer = (await client.get("/ads/v2/diffusion/embeddings")).json()
    known = {"name": "toy", "token": "<toy>", "vectors": 3, "width": 32, "second_width": None, "digest": toy.digest}
    assert answer["embeddings"] == [known]
    assert [each["name"] for each in answer["skipped"]] == ["broken"]


def test_a1111s_client_lists_them(service: DiffusionService) -> None:
    with http_server(create_api(service)) as url:
        listed = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1").get_embeddings()
    assert listed["loaded"]["<toy>"]["vectors"] == 3
    assert set(listed["skipped"]) == {"broken"}


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "a <toy> cup"},
        {"prompt": "a cup", "negative_prompt": "(<TOY>:1.2)"},
        {"prompt": "a cup", "style_preset": "in the manner of <toy>"},
        {"prompt": "", "template": "t", "template_values": {"what": "red"}},
    ],
)
async def test_a_request_has_those_that_its_prompts_name(
    client: httpx.AsyncClient, backend: FakeBackend, toy: EmbeddingFile, asked: dict[str, object]
) -> None:
    assert (await client.post(PATH, json=asked)).status_code == 200
    assert backend.asked[0].embeddings == (toy,)


async def test_other_requests_have_none_and_tokens_are_counted_with_them(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    assert (await client.post(PATH, json={"prompt": "a toy"})).status_code == 200
    assert backend.asked[0].embeddings == ()


async def test_a_file_that_has_changed_makes_other_results(
    backend: FakeBackend, toy: EmbeddingFile, tmp_path: Path
) -> None:
    cache = ResultCache(CacheConfig())
    cached = []
    for _ in range(2):
        rules = PromptRules(embeddings=EmbeddingRegistry([EmbeddingSpec("toy", toy.path, "<toy>")]))
        service = DiffusionService(backend, prompts=rules, cache=cache)
        async with http(create_api(service)) as client:
            for _ in range(2):
                answer = await client.post(PATH, json={"prompt": "a <toy>", "seed": 1})
                cached.append(answer.json()["cached"])
        save_embedding(tmp_path, "toy", 5, token="<toy>")
    assert cached == [False, True, False, True]


def test_the_configuration_names_files_and_a_folder(tmp_path: Path, toy: EmbeddingFile) -> None:
    section = {"files": [{"name": "toy", "source": toy.path, "token": "<toy>"}], "folder": str(tmp_path)}
    config = AppConfig.model_validate({"deployments": [{"name": "d", "models": ["sd15"]}], "embeddings": section})
    registry = config.embeddings.registry()
    assert [file.name for file in registry.files] == ["toy"]
    assert config.embeddings.places == (Path(toy.path), tmp_path)
    for wrong in ({"name": "a b"}, {"token": "a b"}, {"token": "(a)"}, {"token": "a:b"}):
        broken = {"files": [{"name": "toy", "source": toy.path} | wrong]}
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AppConfig.model_validate({"deployments": [{"name": "d", "models": ["sd15"]}], "embeddings": broken})

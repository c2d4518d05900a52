"""A batch of one request that stands for many: rows, variants, advertisements' formats."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.config.sections import CacheConfig, JobsConfig
from serve_app.service import DiffusionService
from tests.serve_app.fakes import FakeBackend, http

DOOR = "/ads/v2/diffusion/batch-generate"
PHOTO = {"prompt": "", "template": "product_photo", "template_values": {"style_description": "plain"}, "seed": 3}


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    service = DiffusionService(backend, cache=ResultCache(CacheConfig(enabled=False)))
    config = JobsConfig(max_entries=20)
    app = create_api(service, wildcards={"colour": ["red", "blue"]}, jobs_config=config)
    async with http(app) as client:
        yield client
    await app.state.jobs.stop()


async def ask(client: httpx.AsyncClient, request: dict[str, Any], **expand: Any) -> httpx.Response:
    return await client.post(DOOR, json={"requests": [request], "expand": expand})


def results(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    entries: list[dict[str, Any]] = answer.json()["results"]
    assert [entry["status"] for entry in entries] == [200] * len(entries), entries
    return entries


async def test_every_combination_is_an_entry(client: httpx.AsyncClient) -> None:
    request = {"prompt": "{a cup|a shoe} on __colour__", "seed": 7}
    entries = results(await ask(client, request, variants="all"))
    assert [(entry["effective_prompt"], entry["parameters"]["seed"]) for entry in entries] == [
        ("a cup on red", 7),
        ("a cup on blue", 8),
        ("a shoe on red", 9),
        ("a shoe on blue", 10),
    ]


async def test_variants_are_drawn_by_the_seed(client: httpx.AsyncClient) -> None:
    request = {"prompt": "{a|b|c|d} {e|f|g|h}"}
    first = results(await ask(client, request, variants=3))
    seeds = [entry["parameters"]["seed"] for entry in first]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    again = results(await ask(client, {**request, "seed": seeds[1]}, variants=2))
    assert [entry["effective_prompt"] for entry in again] == [entry["effective_prompt"] for entry in first[1:]]


@pytest.mark.parametrize(
    ("seed", "status"), [(7.0, 200), ("seven", 422), (True, 422), (-5, 422), (None, 200), (-1, 200)]
)
async def test_a_seed_is_the_callers_own_or_refused(seed: object, status: int, client: httpx.AsyncClient) -> None:
    answer = await ask(client, {"prompt": "{a|b}", "seed": seed}, variants=1)
    (entry,) = answer.json()["results"]
    assert entry["status"] == status
    if seed == 7.0:
        assert entry["parameters"]["seed"] == 7


async def test_a_csv_of_products_fills_a_template_in_every_format(client: httpx.AsyncClient) -> None:
    csv = 'product_name\r\n"coffee, black"\r\ntea\r\n'
    entries = results(await ask(client, PHOTO, csv=csv, ad_formats=["square", "story"]))
    described = [(entry["effective_prompt"].split(" on a")[0], entry["parameters"]["ad_format"]) for entry in entries]
    products = ("coffee, black", "tea")
    assert described == [(product, name) for product in products for name in ("square", "story")]
    assert entries[1]["parameters"]["output_size"] == [1080, 1920]


async def test_rows_add_to_a_requests_own_values(client: httpx.AsyncClient) -> None:
    entries = results(await ask(client, PHOTO, values=[{"product_name": "tea", "style_description": "bright"}]))
    assert entries[0]["parameters"]["template_values"] == {"product_name": "tea", "style_description": "bright"}


async def test_without_variants_brackets_are_text(client: httpx.AsyncClient) -> None:
    entries = results(await ask(client, {"prompt": "a {cup|shoe}"}, ad_formats=["square"]))
    assert entries[0]["effective_prompt"] == "a {cup|shoe}"


async def test_an_entry_that_is_wrong_fails_alone(client: httpx.AsyncClient) -> None:
    answer = await ask(client, {"prompt": "a cup"}, ad_formats=["square", "sqare"])
    assert [entry["status"] for entry in answer.json()["results"]] == [200, 422]


@pytest.mark.parametrize(
    ("request_", "expansion", "said"),
    [
        ({"prompt": "{a|b}{a|b}{a|b}{a|b}{a|b}"}, {"variants": "all"}, "at most 20 entries"),
        ({"prompt": "{0|1|2|3|4|5|6|7|8|9}" * 90}, {"variants": "all"}, "at most 20 entries"),
        ({"prompt": "{a|b"}, {"variants": 2}, "not closed"),
        ({"prompt": "__shape__"}, {"variants": 2}, "wildcard list"),
        ({"prompt": "{a|b}" + "x" * 8_000}, {"variants": 20}, "at most 8000 characters"),
        (PHOTO, {"csv": "a\n" + "x" * 200_000}, "cannot be read"),
        ({"prompt": "a"}, {"variants": 0}, "variants must be"),
        ({"prompt": "a"}, {"variants": "some"}, "variants"),
        (PHOTO, {"csv": "product_name"}, "rows under it"),
        (PHOTO, {"csv": "a,a\n1,2"}, "different names"),
        (PHOTO, {"csv": "a,b\n1"}, "as many cells"),
        (PHOTO, {"csv": "a\n1", "values": [{"a": "1"}]}, "exclude each other"),
        (PHOTO, {"values": [{"a": 1}]}, "values"),
        (PHOTO, {"rows": []}, "rows"),
    ],
)
async def test_an_expansion_that_is_wrong_is_refused_whole(
    request_: dict[str, Any], expansion: dict[str, Any], said: str, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    answer = await ask(client, request_, **expansion)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert not backend.asked

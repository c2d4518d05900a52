"""The result cache over HTTP: headers, bodies, streams, and the permission to empty it."""

import asyncio

import httpx
import pytest

from bench.redis_server import redis_server
from deployments.engine.protocol.events import Accepted
from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.client import parse_events
from serve_app.config.sections import CacheConfig
from serve_app.generation.result import to_png
from serve_app.service import DiffusionService
from serve_app.store.redis import RedisTier
from tests.serve_app.fakes import EVENTS, PATH, FakeBackend, success
from tests.serve_app.redis_servers import redis_at, wire_to

CACHE = "/ads/v2/diffusion/cache"
CUP = {"prompt": "a red cup", "seed": 7}
PNG = {"Accept": "image/png"}


@pytest.fixture
def service(backend: FakeBackend) -> DiffusionService:
    return DiffusionService(backend, cache=ResultCache(CacheConfig()))


async def test_every_kind_of_answer_says_where_its_images_come_from(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for headers in ({}, PNG, EVENTS):
        body = {**CUP, "prompt": f"{headers}"}
        answers = [await client.post(PATH, json=body, headers=headers) for _ in range(2)]
        assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "HIT"]
        assert answers[0].headers["content-type"] == answers[1].headers["content-type"]
    assert len(backend.asked) == 3


async def test_a_hit_is_the_same_answer_but_for_its_id_and_times(client: httpx.AsyncClient) -> None:
    first, second = [(await client.post(PATH, json=CUP)).json() for _ in range(2)]
    assert (first.pop("cached"), second.pop("cached")) == (False, True)
    assert first.pop("id") != second.pop("id")
    assert first.pop("timings")["total_ms"] > 0
    assert set(second.pop("timings").values()) == {0}
    assert first == second
    bytes_of = [(await client.post(PATH, json=CUP, headers=PNG)).content for _ in range(2)]
    assert bytes_of[0] == bytes_of[1]


async def test_a_stream_of_a_hit_is_told_like_any_other(client: httpx.AsyncClient) -> None:
    for cached in (False, True):
        answer = await client.post(PATH, json=CUP, headers=EVENTS)
        events = [event for event in parse_events(answer.text.splitlines()) if event.name != "progress"]
        assert [event.name for event in events] == ["image", "done"]
        assert events[-1].data["cached"] is cached


async def test_what_is_shared_says_so(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda request: [Accepted(request.id, 0), 0.05, *success(request)[1:]]
    for headers in ({}, EVENTS):
        body = {**CUP, "prompt": f"{headers}"}
        answers = await asyncio.gather(*(client.post(PATH, json=body, headers=headers) for _ in range(3)))
        assert sorted(answer.headers["x-cache"] for answer in answers) == ["COALESCED", "COALESCED", "MISS"]
        assert all(answer.status_code == 200 for answer in answers)
    assert len(backend.asked) == 2


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("no-store", ["MISS", "MISS", "MISS"]),
        ("max-age=0, No-Store", ["MISS", "MISS", "MISS"]),
        ("no-cache", ["MISS", "MISS", "HIT"]),
        ("max-age=0", ["MISS", "HIT", "HIT"]),
    ],
)
async def test_cache_control_is_obeyed(client: httpx.AsyncClient, said: str, seen: list[str]) -> None:
    asked = [{"Cache-Control": said}, {"Cache-Control": said}, {}]
    assert [(await client.post(PATH, json=CUP, headers=headers)).headers["x-cache"] for headers in asked] == seen


async def test_reuse_is_a_wish_like_any_field_and_no_parameter_of_the_images(client: httpx.AsyncClient) -> None:
    await client.post(PATH, json=CUP)
    body = {"prompt": "a red cup"}
    assert (await client.post(PATH, json=body)).headers["x-cache"] == "MISS"
    reused = await client.post(PATH, json={**CUP, "cache": "reuse"})
    assert reused.headers["x-cache"] == "HIT"
    assert "cache" not in reused.json()["parameters"]
    png = await client.post(PATH, json={**body, "cache": "reuse"}, headers=PNG)
    assert png.headers["x-cache"] == "HIT"
    wrong = await client.post(PATH, json={**body, "cache": "always"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "cache")


async def test_forms_have_it_too(client: httpx.AsyncClient) -> None:
    from PIL import Image

    files = {"init_image": to_png(Image.new("RGB", (64, 64), "red"))}
    seen = []
    for data in ({"seed": "7"}, {"seed": "7"}, {"cache": "reuse"}, {}):
        path = "/ads/v2/diffusion/image-to-image"
        answer = await client.post(path, data={"prompt": "a cup", **data}, files=files)
        seen.append(answer.headers["x-cache"])
    assert seen == ["MISS", "HIT", "HIT", "MISS"]


async def test_statistics_and_health_know_the_entries(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await client.post(PATH, json=CUP)
    stats = (await client.get("/ads/v2/diffusion/stats")).json()
    assert (stats["cache_hit_rate"], stats["total_cache_entries"]) == (0.5, 1)
    assert (await client.get("/ads/v2/diffusion/health")).json()["cache_entries"] == 1


async def test_emptied_is_empty(client: httpx.AsyncClient) -> None:
    await client.post(PATH, json=CUP)
    answer = await client.delete(CACHE)
    assert (answer.status_code, answer.json()) == (200, {"emptied": 1})
    assert (await client.post(PATH, json=CUP)).headers["x-cache"] == "MISS"


async def test_redis_gone_is_degraded_and_an_emptying_that_did_not_reach_it_is_no_success(backend: FakeBackend) -> None:
    with redis_server() as server:
        async with wire_to(server) as wire:
            redis = RedisTier(redis_at(wire.url))
            cache = ResultCache(CacheConfig(), redis)
            async with DiffusionService(backend, cache=cache, redis=redis) as service:
                transport = httpx.ASGITransport(app=create_api(service))
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                    assert (await client.get("/readyz")).json()["status"] == "healthy"
                    assert (await client.delete(CACHE)).status_code == 200
                    await wire.turn("refuse")
                    refused = await client.delete(CACHE)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "cache_not_emptied")
                    assert refused.headers["retry-after"] == "5"
                    assert (await client.post(PATH, json=CUP)).status_code == 200
                    for _ in range(3):
                        health = await client.get("/ads/v2/diffusion/health")
                    assert (health.status_code, health.json()["status"]) == (200, "degraded")

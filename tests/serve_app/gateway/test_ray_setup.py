"""Two ingress processes with one Redis, on a real local Ray, share limits and stored answers."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from bench.prometheus import scrape_until, total
from bench.redis_server import redis_server
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.k8s.queries import QUERIES, used
from tests.serve_app.redis_servers import redis_at
from tests.serve_app.servers import Launched, ray_server, tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

BASE = "/ads/v2/diffusion"
CUP: dict[str, Any] = {"prompt": "a red cup", "num_inference_steps": 4, "seed": 7, "width": 64, "height": 64}
CACHE_ERRORS = "ray_diffusion_cache_errors_total"
LONG = CUP | {"num_inference_steps": 150, "num_images": 4, "width": 256, "height": 256}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    folder = tmp_path_factory.mktemp("door")
    save_tiny_checkpoint(folder / "tiny")
    with redis_server() as redis:
        config = tiny_config(folder / "tiny", ingresses=2, redis=redis_at(redis.url, timeout_ms=1000))
        with ray_server(config, folder) as server:
            yield server


@pytest.fixture
async def client(server: Launched) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


async def ask(client: httpx.AsyncClient, body: dict[str, Any], name: str) -> httpx.Response:
    return await client.post(f"{BASE}/text-to-image", json=body, headers={"x-request-id": name})


async def test_a_request_is_ended_through_whichever_ingress(server: Launched, client: httpx.AsyncClient) -> None:
    assert len(server.ingresses()) == 2
    names = [f"mine-{i}" for i in range(10)]
    asked = [asyncio.create_task(ask(client, LONG | {"seed": i}, name)) for i, name in enumerate(names)]
    deadline = time.monotonic() + 20
    while (stats := (await client.get(f"{BASE}/stats")).json())["images_running"] + stats["images_waiting"] < 40:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    # One word for each, through whichever ingress it comes; that all ten have the right one by chance is one in 1024.
    ended = [(await client.delete(f"{BASE}/requests/{name}")).json()["cancelled"] for name in names]
    assert ended == [True] * 10
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in await asyncio.gather(*asked)} == {
        (499, "cancelled")
    }


async def test_what_one_ingress_has_made_all_of_them_serve(client: httpx.AsyncClient) -> None:
    first = await client.post(f"{BASE}/text-to-image", json=CUP)
    assert first.headers["x-cache"] == "MISS"
    # Storing goes on behind the answer; and whoever asked too early would make it, and then have it anyway.
    await asyncio.sleep(2)
    others = [await client.post(f"{BASE}/text-to-image", json=CUP) for _ in range(12)]
    assert {other.headers["x-cache"] for other in others} == {"HIT"}
    assert {other.json()["images"][0]["data"] for other in others} == {first.json()["images"][0]["data"]}


async def test_prometheus_is_told_what_the_cache_has_done(server: Launched, client: httpx.AsyncClient) -> None:
    """As the dashboard asks for it: the other file's server, which is asked for all the rest, has no cache."""
    for _ in range(2):
        assert (await client.post(f"{BASE}/text-to-image", json=CUP)).is_success
    counted = {name for query in QUERIES for name, _ in used(query) if "_cache_" in name} - {CACHE_ERRORS}
    assert counted
    found = await asyncio.to_thread(
        scrape_until, server.process.pid, lambda now: counted <= {each.name for each in now}
    )
    assert counted - {each.name for each in found} == set()
    assert total(found, "diffusion_cache_requests_total", result="hit") > 0


def told_to_come_back(answer: httpx.Response) -> bool:
    """A problem as any other, not the bare words of Ray's proxy."""
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == answer.headers["x-request-id"]
    return answer.status_code == 503 and problem["retryable"] and int(answer.headers["retry-after"]) > 0


async def test_who_asked_an_ingress_that_dies_is_told_to_come_back(server: Launched, client: httpx.AsyncClient) -> None:
    asked = [asyncio.create_task(ask(client, LONG | {"seed": 50 + i}, f"lost-{i}")) for i in range(4)]
    deadline = time.monotonic() + 20
    while (await client.get(f"{BASE}/stats")).json()["images_running"] == 0:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    for pid in server.ingresses():
        os.kill(pid, signal.SIGKILL)
    lost = await asyncio.gather(*asked)
    assert [(answer.json()["error"]["code"], answer.json()["request_id"]) for answer in lost] == [
        ("ingress_lost", f"lost-{i}") for i in range(4)
    ]
    assert all(told_to_come_back(answer) for answer in lost)
    deadline = time.monotonic() + 60
    while (answer := await client.get("/livez")).status_code != 200:
        assert told_to_come_back(answer)
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_outsiders_learn_nothing_from_rays_pages_and_the_proxy_bounds_headers(client: httpx.AsyncClient) -> None:
    """Of Ray's own proxy process; `test_http_protocol.py` and `test_proxy_answers.py` have all of it."""
    assert (await client.get("/-/routes")).status_code == 404
    assert (await client.get("/-/healthz", headers={"x-forwarded-for": "10.0.0.7"})).status_code == 404
    assert (await client.get("/-/healthz")).text == "success"
    answer = await client.get("/livez", headers=[(f"x-{i}", "1") for i in range(101)])
    assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")
    evil = {"host": "evil.example", "origin": "http://evil.example"}
    answer = await client.post(f"{BASE}/text-to-image", json=CUP, headers=evil)
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "unknown_host")


async def test_a_job_outlives_the_ingresses_that_had_it(server: Launched, client: httpx.AsyncClient) -> None:
    entries = [CUP | {"num_inference_steps": 100, "seed": 100 + i, "width": 128, "height": 128} for i in range(40)]
    headers = {"Prefer": "respond-async"}
    accepted = await client.post(f"{BASE}/batch-generate", json={"requests": entries}, headers=headers)
    assert accepted.status_code == 202
    where = accepted.headers["location"]
    for pid in server.ingresses():
        os.kill(pid, signal.SIGKILL)
    deadline, state = time.monotonic() + 120, ""
    while state not in ("succeeded", "failed"):
        assert time.monotonic() < deadline, state
        await asyncio.sleep(0.5)
        answer = await client.get(where)
        # Until Serve has started others.
        state = answer.json()["state"] if answer.status_code == 200 else f"{answer.status_code}"
    assert (answer.json()["succeeded"], answer.json()["failed"]) == (40, 0)

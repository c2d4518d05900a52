"""Rate limits over HTTP: whose limits apply, what counts, and what the answers say."""

import asyncio
import base64
import io
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI
from PIL import Image

from bench.redis_server import redis_server
from deployments.engine.protocol.errors import Overloaded
from serve_app.api.application import create_api
from serve_app.api.middleware.rate_limiting import address_of
from serve_app.config.secret import Secret
from serve_app.config.sections import LimitsConfig
from serve_app.gateway.api_keys import Keyring, generate_key, hash_of
from serve_app.gateway.rate_limits import RateLimits
from serve_app.gateway.setup import Gateway
from serve_app.service import DiffusionService
from serve_app.store.redis import RedisTier
from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.fakes import EVENTS, PATH, FakeBackend, refusing, slow, success, until
from tests.serve_app.gateway.test_sliding_window import Clock
from tests.serve_app.redis_servers import redis_at

BASE = "/ads/v2/diffusion"
# 256 x 256 pixels and 50 steps: 3.3 megapixel-steps.
CUP = {"prompt": "a red cup", "width": 256, "height": 256}
HERE = "203.0.113.7"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limited(service: DiffusionService, clock: Clock, keys: Keyring | None = None, **config: Any) -> FastAPI:
    settings = LimitsConfig.model_validate(config)
    return create_api(
        service, gateway=Gateway(keys=keys, limits=RateLimits(settings, None, service.gateway_counts, clock))
    )


def caller(app: FastAPI, address: str = HERE, **headers: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, client=(address, 4000))
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


async def test_counts_of_tokens_have_limits_and_use_nothing_of_those_for_images(
    service: DiffusionService, backend: FakeBackend, clock: Clock
) -> None:
    async with caller(limited(service, clock, per_address={"requests_per_minute": 2})) as client:
        counts = [(await client.post(f"{BASE}/tokens", json=CUP)).status_code for _ in range(3)]
        made = await client.post(PATH, json=CUP)
    assert counts == [200, 200, 429]
    assert made.status_code == 200


async def test_a_request_too_many_is_told_when_to_come_back(
    service: DiffusionService, backend: FakeBackend, clock: Clock
) -> None:
    async with caller(limited(service, clock, per_address={"requests_per_minute": 2})) as client:
        let_in = [await client.post(PATH, json=CUP) for _ in range(2)]
        assert [response.status_code for response in let_in] == [200, 200]
        assert let_in[0].headers["ratelimit-policy"] == '"requests_per_minute";q=2;w=60'
        assert let_in[0].headers["ratelimit"] == '"requests_per_minute";r=1;t=60'
        refused = await client.post(PATH, json=CUP)
        assert_problem(refused, 429, "rate_limited")
        assert refused.json()["error"]["param"] == "requests_per_minute"
        assert "2 requests a minute" in refused.json()["detail"]
        assert refused.json()["retryable"]
        wait = int(refused.headers["retry-after"])
        assert refused.headers["ratelimit"] == f'"requests_per_minute";r=0;t={wait}'
        clock.now += wait
        assert (await client.post(PATH, json=CUP)).status_code == 200
    assert len(backend.asked) == 3


async def test_only_requests_for_images_count(service: DiffusionService, clock: Clock) -> None:
    async with caller(limited(service, clock, per_address={"requests_per_minute": 1})) as client:
        for path in (f"{BASE}/models", f"{BASE}/health", "/readyz", f"{BASE}/stats"):
            for _ in range(3):
                response = await client.get(path)
                assert response.status_code == 200
                assert "ratelimit" not in response.headers
        assert (await client.post(PATH, json=CUP)).status_code == 200


async def test_a_refused_request_is_refused_before_its_body_is_read(service: DiffusionService, clock: Clock) -> None:
    read: list[None] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(None)
        yield b"{}"

    async with caller(limited(service, clock, per_address={"requests_per_minute": 1})) as client:
        await client.post(PATH, json=CUP)
        refused = await client.post(PATH, content=body())
    assert_problem(refused, 429, "rate_limited")
    assert refused.headers["connection"] == "close"
    assert not read


async def test_each_key_has_limits_of_its_own(service: DiffusionService, clock: Clock, tmp_path: Path) -> None:
    keys = {name: generate_key() for name in ("one", "two", "more")}
    entries = [{"id": name, "hash": hash_of(key), "tenant": "acme"} for name, key in keys.items()]
    entries[2]["limits"] = {"requests_per_minute": 3}  # type: ignore[assignment]
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(entries))
    ring = Keyring(Secret(file=tmp_path / "keys.yaml"))
    app = limited(service, clock, ring, per_key={"requests_per_minute": 1}, per_address={"requests_per_minute": 1})
    let_in = Counter[str]()
    for _ in range(5):
        for name, key in keys.items():
            async with caller(app, **{"X-API-Key": key}) as client:
                let_in[name] += (await client.post(PATH, json=CUP)).is_success
    assert let_in == {"one": 1, "two": 1, "more": 3}


async def test_each_address_has_limits_of_its_own(service: DiffusionService, clock: Clock) -> None:
    app = limited(service, clock, per_address={"requests_per_minute": 1})

    async def status(address: str) -> int:
        async with caller(app, address) as client:
            return (await client.post(PATH, json=CUP)).status_code

    assert [await status(HERE), await status(HERE), await status("203.0.113.8")] == [200, 429, 200]
    # Whoever has an IPv6 address has a network of them.
    assert [await status("2001:db8::1"), await status("2001:db8::2"), await status("2001:db8:0:1::1")] == [
        200,
        429,
        200,
    ]


@pytest.mark.parametrize("answer", [{}, EVENTS])
async def test_a_place_is_held_to_the_end_of_the_answer(
    answer: dict[str, str], service: DiffusionService, backend: FakeBackend, clock: Clock
) -> None:
    backend.script = slow
    async with caller(limited(service, clock, per_address={"concurrent_requests": 1})) as client:
        first = asyncio.ensure_future(client.post(PATH, json=CUP, headers=answer))
        await until(lambda: backend.running == 1)
        refused = await client.post(PATH, json=CUP)
        assert_problem(refused, 429, "rate_limited")
        assert refused.json()["error"]["param"] == "concurrent_requests"
        assert refused.headers["ratelimit-policy"] == '"concurrent_requests";q=1;qu="concurrent-requests"'
        first.cancel()
        await until(lambda: backend.running == 0)
        backend.script = success
        assert (await client.post(PATH, json=CUP)).status_code == 200
        # A place whose request was refused by others is free, too.
        backend.script = refusing(Overloaded("the queue is full"))
        for _ in range(3):
            assert (await client.post(PATH, json=CUP)).status_code == 503


@pytest.mark.parametrize("answer", [{}, EVENTS])
async def test_work_is_charged_after_the_defaults_are_filled_in(
    answer: dict[str, str], service: DiffusionService, backend: FakeBackend, clock: Clock
) -> None:
    app = limited(service, clock, per_address={"cost_per_minute": 10})
    async with caller(app) as client:
        one = await client.post(PATH, json=CUP, headers=answer)
        assert one.status_code == 200
        assert one.headers["ratelimit-policy"] == '"cost_per_minute";q=10;w=60'
        assert one.headers["ratelimit"] == '"cost_per_minute";r=6;t=60'
        refused = await client.post(PATH, json=CUP | {"num_images": 3}, headers=answer)
        assert_problem(refused, 429, "rate_limited")
        assert refused.json()["error"]["param"] == "cost_per_minute"
        assert (await client.post(PATH, json=CUP | {"num_images": 2}, headers=answer)).status_code == 200
        assert (await client.post(PATH, json=CUP, headers=answer)).status_code == 429
        clock.now += int(refused.headers["retry-after"])
    assert len(backend.asked) == 2


async def test_what_nobody_could_make_costs_nothing(service: DiffusionService, clock: Clock) -> None:
    async with caller(limited(service, clock, per_address={"cost_per_minute": 4})) as client:
        for wrong in ({"width": 63}, {"model_name": "nobodys"}, {"controls": [{"type": "canny"}]}):
            assert (await client.post(PATH, json=CUP | wrong)).status_code in (404, 422)
        assert (await client.post(PATH, json=CUP)).status_code == 200


async def test_a_request_too_costly_for_ever_names_its_fields(service: DiffusionService, clock: Clock) -> None:
    async with caller(limited(service, clock, per_address={"max_cost": 7})) as client:
        assert (await client.post(PATH, json=CUP | {"num_images": 2})).status_code == 200
        refused = await client.post(PATH, json=CUP | {"num_images": 3})
    assert_problem(refused, 422, "too_costly")
    assert "retry-after" not in refused.headers
    pointers = [fault["pointer"] for fault in refused.json()["errors"]]
    assert pointers == ["#/width", "#/height", "#/num_inference_steps", "#/num_images"]


async def test_refusals_and_redis_that_is_gone_are_counted(service: DiffusionService, clock: Clock) -> None:
    with redis_server() as server:
        server.stop()
        tier = RedisTier(redis_at(server.url))
        settings = LimitsConfig.model_validate({"per_address": {"requests_per_minute": 1}})
        app = create_api(service, gateway=Gateway(limits=RateLimits(settings, tier, service.gateway_counts, clock)))
        async with caller(app) as client:
            statuses = [(await client.post(PATH, json=CUP)).status_code for _ in range(3)]
            stats = (await client.get(f"{BASE}/stats")).json()
        await tier.close()
    assert statuses == [200, 429, 429]
    assert (stats["rate_limited"], stats["limits_degraded"]) == (2, 3)
    samples = {sample.metric.name: sample.now for sample in service.samples()}
    assert (samples["diffusion_rate_limited"], samples["diffusion_limits_degraded"]) == (2, 3)


@pytest.mark.parametrize(
    ("proxies", "forwarded", "expected"),
    [
        (0, ["198.51.100.1"], HERE),
        (1, [], HERE),
        (1, ["198.51.100.1"], "198.51.100.1"),
        (1, ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        (1, ["6.6.6.6", "198.51.100.1"], "198.51.100.1"),
        (2, ["6.6.6.6, 198.51.100.1, 10.0.0.1"], "198.51.100.1"),
        (2, ["198.51.100.1"], HERE),
        (1, ["198.51.100.1:5000"], "198.51.100.1"),
        (1, ["[2001:db8::1]:5000"], "2001:db8::/64"),
        (1, ["2001:db8::ffff"], "2001:db8::/64"),
        (1, ["::ffff:198.51.100.1"], "198.51.100.1"),
        (1, ["nonsense"], HERE),
        (1, ["x" * 5000], HERE),
    ],
)
def test_only_the_proxies_that_are_ours_are_believed(proxies: int, forwarded: list[str], expected: str) -> None:
    headers = [(b"x-forwarded-for", line.encode()) for line in forwarded]
    assert address_of({"type": "http", "client": (HERE, 1), "headers": headers}, proxies) == expected


def test_a_caller_without_an_address_has_a_name_all_the_same() -> None:
    for client in (None, ("", 0), ("/run/socket", 0)):
        assert re.fullmatch(r"\w+", address_of({"type": "http", "client": client, "headers": []}, 0))


@pytest.mark.parametrize(
    "more",
    [
        {"output_size": [2048, 2048]},
        {"hires": {"scale": 4.0, "strength": 1.0}},
        {"num_images": 16, "output_size": [1024, 1024]},
    ],
)
async def test_what_makes_a_request_dearer_is_charged(
    more: dict[str, Any], service: DiffusionService, backend: FakeBackend, clock: Clock
) -> None:
    small = {"prompt": "a red cup", "width": 64, "height": 64, "num_inference_steps": 40}
    async with caller(limited(service, clock, per_address={"max_cost": 2})) as client:
        assert (await client.post(PATH, json=small)).status_code == 200
        assert_problem(await client.post(PATH, json=small | more), 422, "too_costly")
    assert len(backend.asked) == 1


@pytest.mark.parametrize("door", ["verify", "hint"])
async def test_pictures_that_are_only_read_are_charged(door: str, service: DiffusionService, clock: Clock) -> None:
    photo = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(photo, "PNG")
    name, fields = {
        "verify": ("image", {}),
        "hint": ("control_image", {"controlnet_type": "canny", "width": "1024", "height": "1024"}),
    }[door]
    # 1024 x 1024 pixels, as two steps: 2.1 megapixel-steps.
    async with caller(limited(service, clock, per_address={"cost_per_minute": 5})) as client:

        async def ask() -> httpx.Response:
            return await client.post(f"{BASE}/{door}", files={name: photo.getvalue()}, data=fields)

        assert [(await ask()).status_code for _ in range(2)] == [200, 200]
        assert_problem(await ask(), 429, "rate_limited")


async def test_pictures_that_are_only_enlarged_are_charged(service: DiffusionService, clock: Clock) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    body = {"image": base64.b64encode(picture.getvalue()).decode(), "upscaler_1": "Lanczos", "upscaling_resize": 8}
    async with caller(limited(service, clock, per_address={"cost_per_minute": 1})) as client:
        first = await client.post("/sdapi/v1/extra-single-image", json=body)
        assert first.status_code == 200
        assert_problem(await client.post("/sdapi/v1/extra-single-image", json=body), 429, "rate_limited")

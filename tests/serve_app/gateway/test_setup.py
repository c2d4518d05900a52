"""The gateway that a configuration gives, and the servers that may go without keys."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bench.redis_server import redis_server
from serve_app.api.application import create_api
from serve_app.app import create_ingress_api
from serve_app.config.errors import ConfigError
from serve_app.config.server import AppConfig
from serve_app.gateway.api_keys import Key, generate_key, hash_of
from serve_app.gateway.setup import check_gateway, make_gateway
from serve_app.service import DiffusionService
from serve_app.store.redis import RedisTier
from tests.serve_app.fakes import PATH, FakeBackend, http
from tests.serve_app.redis_servers import redis_at

CUP = {"prompt": "a red cup"}
KEY = generate_key()


def configured(**more: Any) -> AppConfig:
    return AppConfig.model_validate({"deployments": [{"name": "a", "models": ["demo-sd"]}], **more})


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "keys.yaml").write_text(Key(id="a", hash=hash_of(KEY), tenant="acme").to_line())
    return {"keys": {"file": str(tmp_path / "keys.yaml")}}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_this_machine_alone_no_keys_are_needed(host: str) -> None:
    check_gateway(configured(), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
def test_where_others_come_in_keys_are_needed_or_that_none_are_is_said(host: str, keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--without-keys"):
        check_gateway(configured(), host)
    check_gateway(configured(**keys), host)
    check_gateway(configured(without_keys=True), host)


def test_keys_and_none_of_them_exclude_each_other(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        configured(without_keys=True, **keys)


def test_redis_without_its_key_is_found_out_before_anything_starts() -> None:
    with pytest.raises(ValidationError, match="redis"):
        configured(redis={"url": "redis://127.0.0.1:1"})
    with pytest.raises(ConfigError, match="NO_KEY_HERE must hold at least 32"):
        check_gateway(configured(redis={"url": "redis://127.0.0.1:1", "key": {"env": "NO_KEY_HERE"}}), "127.0.0.1")


def test_answers_are_shared_where_there_is_a_redis() -> None:
    alone = make_gateway(configured(), None, Counter()).idempotency
    shared = make_gateway(configured(), RedisTier(redis_at("redis://127.0.0.1:1")), Counter()).idempotency
    assert alone is not None
    assert alone.shared is None
    assert shared is not None
    assert shared.shared is not None


async def test_processes_with_one_redis_are_one_gateway() -> None:
    limits = {"per_address": {"requests_per_minute": 3}}
    with redis_server() as server:
        ours = {"without_keys": True, "ingress": {"hosts": ["test"]}}
        config = configured(limits=limits, redis=redis_at(server.url, timeout_ms=2000), **ours)
        assert config.redis is not None
        backends, tiers = [FakeBackend(), FakeBackend()], [RedisTier(config.redis), RedisTier(config.redis)]
        services = [DiffusionService(backend) for backend in backends]
        apps = [
            create_api(service, gateway=make_gateway(config, tier, service.gateway_counts))
            for service, tier in zip(services, tiers, strict=True)
        ]
        async with http(apps[0]) as one, http(apps[1]) as other:
            first = await one.post(PATH, json=CUP, headers={"Idempotency-Key": "a"})
            again = await other.post(PATH, json=CUP, headers={"Idempotency-Key": "a"})
            assert (again.status_code, again.content) == (200, first.content)
            assert not backends[1].asked
            assert [(await client.post(PATH, json=CUP)).status_code for client in (one, other)] == [200, 429]
        for tier in tiers:
            await tier.close()


async def test_the_configuration_reaches_the_callers(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.app.Publisher", lambda _: None)
    limits = {"limits": {"per_key": {"requests_per_minute": 1}}}
    app = create_ingress_api(configured(**keys, **limits), [FakeBackend()])  # type: ignore[list-item]
    async with http(app) as client:
        assert (await client.post(PATH, json=CUP)).status_code == 401
        client.headers["X-API-Key"] = KEY
        assert [(await client.post(PATH, json=CUP)).status_code for _ in range(2)] == [200, 429]

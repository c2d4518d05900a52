"""Only like engines share states; one order has all of them forgotten, or says that it could not."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from bench.redis_server import RedisServer
from deployments.sharing.spec import SharingSpec, generation_key
from deployments.signing.secret_source import SecretSource
from serve_app.cache.shared_states import sharing_of
from serve_app.config.server import AppConfig
from serve_app.generation.fingerprint import version_of
from serve_app.service import DiffusionService
from serve_app.store.redis import RedisGone, RedisTier
from tests.serve_app.fakes import FakeBackend
from tests.serve_app.redis_servers import redis_at

REDIS = {"url": "rediss://darkroom@elsewhere:6379/0", "key": {"env": "A_KEY"}, "password": {"env": "A_PASSWORD"}}


def config(redis: Any = REDIS, **changes: Any) -> AppConfig:
    deployment = {"name": "demo", "models": ["demo-sd"], "device": "cpu"} | changes.pop("deployment", {})
    return AppConfig.model_validate({"deployments": [deployment], "redis": redis} | changes)


def shared(*args: Any, **changes: Any) -> SharingSpec | None:
    made = config(*args, **changes)
    return sharing_of(made, version_of(made.specs_of(made.deployments[0]), made.numerics()))


def test_nothing_is_shared_without_redis_or_where_it_is_off() -> None:
    assert shared(redis=None) is None
    assert shared(similar={"shared_bytes": 0}) is None


def test_replicas_are_told_where_and_how_much_and_where_the_secrets_are() -> None:
    spec = shared(similar={"shared_bytes": 1000, "ttl_s": 60})
    assert spec is not None
    assert (spec.url, spec.prefix, spec.max_bytes, spec.ttl_s) == (REDIS["url"], "darkroom:", 1000, 60)
    assert (spec.key, spec.password) == (SecretSource(env="A_KEY"), SecretSource(env="A_PASSWORD"))


def test_engines_that_make_other_images_are_another_family() -> None:
    other_weights = {"models": [{"name": "demo-sd", "source": "elsewhere"}]}
    other_parts = {"models": [{"name": "demo-sd", "parts": {"vae": {"source": "elsewhere"}}}]}
    cases: list[dict[str, Any]] = [
        {},
        other_weights,
        other_parts,
        {"deployment": {"dtype": "bfloat16"}},
        {"deployment": {"backend": "torch"}},
        {"deployment": {"max_rows": 8}},
        {"deployment": {"models": ["demo-sd", "demo-inpaint"]}},
    ]
    families = [spec.family for case in cases if (spec := shared(**case)) is not None]
    assert len(set(families)) == len(cases)
    same = shared(deployment={"similar_memory_gib": 1.0, "queue_limit": 3})
    assert same is not None
    assert same.family == families[0]


@contextlib.asynccontextmanager
async def service_at(url: str) -> AsyncIterator[DiffusionService]:
    tier = RedisTier(redis_at(url, timeout_ms=2000.0))
    service = DiffusionService(FakeBackend(), redis=tier)
    yield service
    await service.close()


async def test_emptying_the_cache_has_the_states_of_all_replicas_forgotten(
    server: RedisServer, inside: "redis.Redis"
) -> None:
    inside.set(generation_key("darkroom:"), "0123456789abcdef")
    async with service_at(server.url) as service:
        await service.empty_cache()
    drawn: Any = inside.get(generation_key("darkroom:"))
    assert len(drawn) == 16
    assert drawn != b"0123456789abcdef"


async def test_where_redis_does_not_answer_the_caller_is_told() -> None:
    async with service_at("redis://127.0.0.1:1/0") as service:
        with pytest.raises(RedisGone):
            await service.empty_cache()

"""What replicas share of the early states of images (`cache: similar`), as the configuration says, and its end."""

import secrets
from collections.abc import Sequence

from deployments.engine.protocol.numerics import NUMERICS_VERSION
from deployments.engine.protocol.spec import ModelSpec
from deployments.sharing.spec import STATE_FORM, SharingSpec, generation_key
from serve_app.config.server import AppConfig
from serve_app.generation.fingerprint import canonical_json, hash_of, weights_of
from serve_app.store.redis import RedisTier


def sharing_of(config: AppConfig, specs: Sequence[ModelSpec]) -> SharingSpec | None:
    """Returns what replicas of the deployment that hosts `specs` share; None without Redis, and where that is off."""
    redis, similar = config.redis, config.similar
    if redis is None or not similar.shared_bytes:
        return None
    numerics = config.numerics()
    engine = [NUMERICS_VERSION, STATE_FORM, [[weights_of(spec), numerics[spec.name]] for spec in specs]]
    return SharingSpec(
        redis.url,
        redis.prefix,
        family=hash_of(canonical_json(engine).encode()),
        key=redis.key.source,
        password=None if redis.password is None else redis.password.source,
        max_bytes=similar.shared_bytes,
        ttl_s=similar.ttl_s,
    )


async def forget_shared_states(redis: RedisTier) -> None:
    """Has all replicas forget all states, within about a second. Raises RedisGone."""
    await redis.call(lambda client: client.set(generation_key(redis.prefix), secrets.token_hex(8)))

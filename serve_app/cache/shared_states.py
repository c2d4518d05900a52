"""What replicas share of the early states of images (`cache: similar`), as the configuration says, and its end."""

import secrets

from deployments.sharing.spec import STATE_FORM, SharingSpec, generation_key
from serve_app.config.server import AppConfig
from serve_app.generation.fingerprint import canonical_json, hash_of
from serve_app.store.redis import RedisTier


def sharing_of(config: AppConfig, version: str) -> SharingSpec | None:
    """Returns what replicas of that `version` share (`version_of`); None without Redis, and where that is off."""
    redis, similar = config.redis, config.similar
    if redis is None or not similar.shared_bytes:
        return None
    return SharingSpec(
        redis.url,
        redis.prefix,
        family=hash_of(canonical_json([STATE_FORM, version]).encode()),
        key=redis.key.source,
        password=None if redis.password is None else redis.password.source,
        max_bytes=similar.shared_bytes,
        ttl_s=similar.ttl_s,
    )


async def forget_shared_states(redis: RedisTier) -> None:
    """Has all replicas forget all states, within about a second. Raises RedisGone."""
    await redis.call(lambda client: client.set(generation_key(redis.prefix), secrets.token_hex(8)))

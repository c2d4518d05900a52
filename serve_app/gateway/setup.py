"""What stands before the service, made from the configuration: keys, limits, answers that are kept, and jobs."""

import logging
import time
import uuid
from collections import Counter
from ipaddress import ip_address
from socket import getaddrinfo
from typing import Any

from serve_app.config.errors import ConfigError
from serve_app.config.server import AppConfig
from serve_app.gateway.api_keys import Keyring
from serve_app.gateway.hosts import hosts_of
from serve_app.gateway.idempotency import Idempotency
from serve_app.gateway.idempotency_store import SharedAnswers
from serve_app.gateway.rate_limits import RateLimits
from serve_app.jobs.redis_store import JobShelf
from serve_app.store.redis import RedisTier

log = logging.getLogger(__name__)


def door(config: AppConfig, redis: RedisTier | None, counts: Counter[str]) -> dict[str, Any]:
    """The keyword arguments of `create_api` for it. Raises ConfigError where keys cannot be read."""
    if config.keys is None and not config.without_keys:
        log.warning("no keys are configured: whoever reaches this server may use it")
    shared, shelf = None, None
    if redis is not None:
        shared = SharedAnswers(redis, redis.signing_key("answers"), config.idempotency.ttl_s)
        shelf = JobShelf(redis, config.jobs, redis.signing_key("jobs"), uuid.uuid4().hex)
    return {
        "keys": None if config.keys is None else Keyring(config.keys),
        "hosts": hosts_of(config.ingress.hosts, keys=config.keys is not None),
        "limits": RateLimits(config.limits, redis, counts, time.time),
        "idempotency": Idempotency(config.idempotency, shared, counts),
        "jobs_config": config.jobs,
        "shelf": shelf,
    }


def check_door(config: AppConfig, host: str) -> None:
    """Raises ConfigError where the door could not be made, or others could reach `host`, and nobody asks for a key."""
    if config.redis is not None:
        RedisTier(config.redis)
    if config.keys is not None:
        Keyring(config.keys)
    elif not config.without_keys and not _is_loopback(host):
        raise ConfigError(
            f"whoever reaches {host or 'this machine'} could use this server: configure `keys`, or, where something "
            "before it asks who is there, say --without-keys (or `without_keys: true`)"
        )


def _is_loopback(host: str) -> bool:
    """Whether only this machine's own processes can connect to it. A name that nobody knows cannot be served on."""
    try:
        found = getaddrinfo(host or "0.0.0.0", None)
    except OSError:
        return True
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)

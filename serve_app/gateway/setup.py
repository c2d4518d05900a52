"""Creates the gateway from the configuration: keys, hosts, limits and idempotency."""

import logging
import time
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address
from socket import getaddrinfo

from serve_app.config.errors import ConfigError
from serve_app.config.server import AppConfig
from serve_app.gateway.api_keys import Keyring
from serve_app.gateway.hosts import AllowedHosts, hosts_of
from serve_app.gateway.idempotency import Idempotency
from serve_app.gateway.idempotency_store import RedisIdempotencyStore
from serve_app.gateway.rate_limits import RateLimits
from serve_app.store.redis import RedisTier

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The checks in front of the service: who may ask, under which names, for how much; and the stored answers.

    Without `keys` none are required; without `hosts` it answers to any name and any page; without `limits` there are
    none; without `idempotency` answers with an Idempotency-Key are kept in this process, up to a default size.
    """

    keys: Keyring | None = None
    hosts: AllowedHosts | None = None
    limits: RateLimits | None = None
    idempotency: Idempotency | None = None


def make_gateway(config: AppConfig, redis: RedisTier | None, counts: Counter[str]) -> Gateway:
    """Creates the gateway that `config` describes. Raises ConfigError if the keys cannot be read."""
    if config.keys is None and not config.without_keys:
        log.warning("no keys are configured: whoever reaches this server may use it")
    shared = None
    if redis is not None:
        shared = RedisIdempotencyStore(redis, redis.signing_key("answers"), config.idempotency.ttl_s)
    return Gateway(
        None if config.keys is None else Keyring(config.keys),
        hosts_of(config.ingress.hosts, keys=config.keys is not None),
        RateLimits(config.limits, redis, counts, time.time),
        Idempotency(config.idempotency, shared, counts),
    )


def check_gateway(config: AppConfig, host: str) -> None:
    """Raises ConfigError if the gateway could not be created, or if others can reach `host` without a key."""
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
    """Whether only this machine's own processes can connect to it. A name that does not resolve cannot be served on."""
    try:
        found = getaddrinfo(host or "0.0.0.0", None)
    except OSError:
        return True
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)

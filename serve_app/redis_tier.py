"""Redis, as something that helps while it is there: calls are bounded in time, and after some failures none is made.

redis-py's own defaults wait nearly four seconds for a Redis that is down and a minute for one that is silent; here a
call costs at most `timeout_ms`, whatever becomes of it. When `FAILURES` calls in a row have failed, the breaker opens:
for `PAUSE_S` calls fail at once, and then one of them tries again (Nygard, Release It!, 2007).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pydantic import Field
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from serve_app.strict import Strict

log = logging.getLogger(__name__)

FAILURES: Final = 3
PAUSE_S: Final = 5.0

T = TypeVar("T")
Clock = Callable[[], float]


class RedisConfig(Strict):
    """Where Redis is: `redis://` or, with TLS, `rediss://`. `prefix` goes before every key."""

    url: str = Field(pattern=r"^rediss?://")
    prefix: str = Field(default="darkroom:", max_length=64)
    timeout_ms: float = Field(default=50.0, gt=0, le=10_000)
    max_connections: int = Field(default=32, ge=1)


class RedisGone(Exception):
    """Redis did not do what it was asked in time, or was not asked because it has failed too often lately."""


class RedisTier:
    """Used on one event loop. `failures` counts calls that were made and failed, `skipped` those not made."""

    def __init__(self, config: RedisConfig, clock: Clock = time.monotonic) -> None:
        self.prefix = config.prefix
        self.failures = 0
        self.skipped = 0
        self._timeout_s = config.timeout_ms / 1000
        self._clock = clock
        self._in_a_row = 0
        self._closed_until = 0.0
        self._redis = Redis.from_url(
            config.url,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=config.max_connections,
        )

    @property
    def well(self) -> bool:
        """Whether calls are being made at all."""
        return self._in_a_row < FAILURES

    async def call(self, do: Callable[[Redis], Awaitable[T]]) -> T:
        """What `do` makes of Redis. Raises RedisGone, within the time-out."""
        if not self.well and self._clock() < self._closed_until:
            self.skipped += 1
            raise RedisGone("not asked: it has failed too often")
        # Until this one has come back, the others are not made.
        self._closed_until = self._clock() + PAUSE_S
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await do(self._redis)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            raise RedisGone("it did not answer as it should") from error
        self._in_a_row = 0
        return result

    async def close(self) -> None:
        """Closes its connections."""
        await self._redis.aclose()

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self._in_a_row += 1
        if self._in_a_row == FAILURES:
            log.warning("Redis is left alone for a while: %s", type(error).__name__)

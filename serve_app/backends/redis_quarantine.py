"""Shares the quarantine through Redis: a request that crashed replicas of one ingress is refused by all of them.

The verdicts are in one sorted set, scored by the time at which they end, and signed: whoever can write to Redis cannot
have anybody's request refused. Every process reads them now and then, and uses what it knows in between and while Redis
does not answer.
"""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from redis.asyncio import Redis

from serve_app.store.redis import RedisGone, RedisTier, WrongType
from serve_app.store.redis_values import Damaged, words

log = logging.getLogger(__name__)

# How long another process may go on without what one has found out.
LOOK_EVERY_S: Final = 1.0

# What a request may wait for a look, where Redis was well at the last one.
WAIT_S: Final = 0.05

MOST: Final = 1024

_FORM: Final = re.compile(r"[0-9a-f]{16,128}:[0-9]{1,15}:[0-9a-f]{64}")

Clock = Callable[[], float]


class RedisQuarantine:
    """Used on one event loop. Nothing here raises RedisGone. `clock` gives seconds since 1970."""

    def __init__(self, redis: RedisTier, longest_s: float, clock: Clock = time.time) -> None:
        self._redis, self._longest_s, self._clock = redis, longest_s, clock
        self._key = redis.signing_key("quarantine")
        self._name = f"{redis.prefix}quarantine"
        self._known: dict[str, float] = {}
        self._looked = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        # asyncio keeps weak references only.
        self._publishing: set[asyncio.Task[None]] = set()

    async def seconds_left(self, fingerprint: Callable[[], str]) -> float:
        """Returns how much longer a request is refused. Asks for its `fingerprint` only if anything is."""
        await self._keep_up()
        if not self._known:
            return 0.0
        return self._known.get(await asyncio.to_thread(fingerprint), 0.0) - self._clock()

    def add(self, fingerprint: str, seconds: float) -> None:
        """Publishes a verdict, without waiting for it."""
        until = self._clock() + seconds
        # Rounded down: whoever looks in the same millisecond must not take it for one of longer than is allowed.
        until_ms = int(until * 1000)
        self._known[fingerprint] = until
        task = asyncio.get_running_loop().create_task(self._publish(self._sign(fingerprint, until_ms), until))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def close(self) -> None:
        """Waits for verdicts on their way to Redis."""
        await asyncio.gather(*self._publishing, *([self._looking] if self._looking else []), return_exceptions=True)

    async def _keep_up(self) -> None:
        """Reads the others' verdicts if the last read was a while ago. Does not wait for one that takes long."""
        if self._looking is None and time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._looked = time.monotonic()
            self._looking = asyncio.get_running_loop().create_task(self._read_verdicts())
        if self._looking is not None and self._redis.well:
            await asyncio.wait((self._looking,), timeout=WAIT_S)

    async def _read_verdicts(self) -> None:
        try:
            now = self._clock()
            said = await self._redis.call(
                lambda redis: redis.zrevrangebyscore(self._name, "+inf", f"({now}", start=0, num=MOST)
            )
            self._known = dict(self._parse(said, now))
        except WrongType:
            await self._mend()
        except (RedisGone, Damaged):
            now = self._clock()
            self._known = {name: until for name, until in self._known.items() if until > now}
        finally:
            self._looking = None

    def _parse(self, said: Any, now: float) -> Iterator[tuple[str, float]]:
        entries = words(said, _FORM)
        good = 0
        for entry in entries:
            fingerprint, until_ms, _ = entry.split(":")
            until = int(until_ms) / 1000
            if hmac.compare_digest(entry, self._sign(fingerprint, int(until_ms))):
                good += 1
                if now < until <= now + self._longest_s:
                    yield fingerprint, until
        if good < len(said):
            self._redis.note_damage(f"{len(said) - good} entries of the quarantine")

    async def _publish(self, entry: str, until: float) -> None:
        async def do(redis: Redis) -> None:
            async with redis.pipeline(transaction=True) as pipe:
                pipe.zadd(self._name, {entry: until})
                pipe.zremrangebyscore(self._name, "-inf", self._clock())
                pipe.zremrangebyrank(self._name, 0, -MOST - 1)
                pipe.expire(self._name, round(self._longest_s) + 1)
                await pipe.execute()

        try:
            try:
                await self._redis.call(do)
            except WrongType:
                await self._mend()
                await self._redis.call(do)
        except RedisGone:
            log.warning("the other ingresses were not told of a request that replicas died of")

    async def _mend(self) -> None:
        try:
            await self._redis.mend({self._name: "zset"})
        except RedisGone:
            log.warning("the quarantine in Redis has another type than it was given, and stays so")

    def _sign(self, fingerprint: str, until_ms: int) -> str:
        signature = hmac.digest(self._key, f"{fingerprint}:{until_ms}".encode(), "sha256").hex()
        return f"{fingerprint}:{until_ms}:{signature}"

"""Calls Redis within a time-out, and stops calling it for a while after some failures (a circuit breaker).

redis-py's own defaults wait nearly four seconds for a Redis that is down and a minute for one that is silent; here a
call costs at most `timeout_ms`, whatever becomes of it: the wait for a connection, connecting and the answer together.
When `FAILURES` calls in a row have failed, the breaker opens: for `PAUSE_S` calls fail at once, and then one of them,
the probe, tries again (Nygard, Release It!, 2007).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from deployments.signing.signed import KEY_CHARACTERS, key_for
from serve_app.config.sections import RedisConfig
from serve_app.store.redis_values import MEND, Kinds, is_wrong_type

log = logging.getLogger(__name__)

FAILURES: Final = 3
PAUSE_S: Final = 5.0

T = TypeVar("T")
Clock = Callable[[], float]


class RedisGone(Exception):
    """Redis did not do what it was asked in time, or was not asked because it has failed too often lately."""


class WrongType(RedisGone):
    """Redis is well, but what is under the key has another type than ours."""


class RedisTier:
    """Used on one event loop, or on several one after another; to be closed before each of them ends.

    `failures` counts calls that were made and failed, `skipped` those not made, `damaged` what was found there and not
    used because it is not of the form that we gave it. Raises ConfigError where the key or the
    password is not where the configuration says.
    """

    def __init__(self, config: RedisConfig, clock: Clock = time.monotonic) -> None:
        self.prefix = config.prefix
        self.failures = 0
        self.skipped = 0
        self.damaged = 0
        self._config = config
        self._key = config.key.read("redis: key", KEY_CHARACTERS).encode()
        self._password = None if config.password is None else config.password.read("redis: password")
        self._timeout_s = config.timeout_ms / 1000
        self._clock = clock
        self._in_a_row = 0
        self._next_probe = 0.0
        self._connections: _Connections | None = None
        # asyncio keeps weak references only.
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def well(self) -> bool:
        """Whether calls are being made at all."""
        return self._in_a_row < FAILURES

    def signing_key(self, purpose: str) -> bytes:
        """Derives a key for one purpose: what was signed for one cannot be passed off as another's."""
        return key_for(purpose, self._key)

    async def call(self, do: Callable[[Redis], Awaitable[T]], timeout_s: float | None = None) -> T:
        """Returns what `do` does with Redis. Raises RedisGone, within the configured time-out, or `timeout_s`."""
        probe = not self.well
        if probe:
            self._take_the_probe()
        connections = self._open()
        connections.users += 1
        decided = False
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s), connections.places:
                result = await do(connections.redis)
            decided = True
            self._in_a_row = 0
            return result
        except (RedisError, OSError, TimeoutError) as error:
            decided = True
            if is_wrong_type(error):
                # It answers: whoever can write one key must not keep us from all others.
                self.failures += 1
                self._in_a_row = 0
                self.note_damage("a key")
                raise WrongType("what is there has another type") from error
            self._failed(error)
            if not _answered(error):
                self._retire(connections)
            raise RedisGone("it did not answer as it should") from error
        finally:
            if probe and not decided:
                # Its caller has left: the next one may find out.
                self._next_probe = self._clock()
            connections.users -= 1
            self._close_if_unused(connections)

    async def mend(self, kinds: Kinds) -> None:
        """Removes what is under these keys and has another type than ours. Raises RedisGone."""
        await self.call(lambda redis: redis.eval(MEND, len(kinds), *kinds, *kinds.values()))

    def note_damage(self, what: str) -> None:
        """Counts and logs something that was found there and is not used."""
        self.damaged += 1
        log.warning("%s in Redis is not what was put there: it is not used", what)

    async def check(self) -> bool:
        """As `well`, but asks Redis before, so that its recovery shows even where nobody needs it just now."""
        with contextlib.suppress(RedisGone):
            await self.call(lambda redis: redis.ping())
        return self.well

    async def close(self) -> None:
        """Closes its connections."""
        if self._connections is not None:
            self._retire(self._connections)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _take_the_probe(self) -> None:
        now = self._clock()
        if now < self._next_probe:
            self.skipped += 1
            raise RedisGone("not asked: it has failed too often")
        # Until this one has come back, the others are not made.
        self._next_probe = now + PAUSE_S

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self._in_a_row += 1
        self._next_probe = self._clock() + PAUSE_S
        if self._in_a_row == FAILURES:
            log.warning("Redis is left alone for a while: %s", type(error).__name__)

    def _open(self) -> "_Connections":
        """Returns the connections in use; new ones where there are none, or they belong to an ended event loop."""
        loop = asyncio.get_running_loop()
        if self._connections is None or self._connections.loop is not loop:
            self._connections = _Connections(self._client(), loop, asyncio.Semaphore(self._config.max_connections))
        return self._connections

    def _client(self) -> Redis:
        return Redis.from_url(
            self._config.url,
            password=self._password,
            # One clock for everything: `call`'s.
            socket_timeout=None,
            socket_connect_timeout=self._timeout_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=self._config.max_connections,
            # The newer protocol's greetings cost two more round trips, and its notices pass for life on connections
            # that are dead.
            protocol=2,
            driver_info=None,
        )

    def _retire(self, connections: "_Connections") -> None:
        """Uses new connections from now on. Those that lay idle have likely died as well, without a word: each would
        cost a failed call, and many of them minutes of open breaker after Redis has come back."""
        if self._connections is connections:
            self._connections = None
        connections.retired = True
        self._close_if_unused(connections)

    def _close_if_unused(self, connections: "_Connections") -> None:
        if connections.retired and not connections.users:
            connections.retired = False
            task = asyncio.get_running_loop().create_task(connections.redis.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


@dataclass(slots=True, eq=False)
class _Connections:
    """A client with its pool, and how many calls use it. `places` makes callers wait where redis-py would refuse."""

    redis: Redis
    loop: asyncio.AbstractEventLoop
    places: asyncio.Semaphore
    users: int = 0
    retired: bool = False


def _answered(error: Exception) -> bool:
    """Whether Redis itself refused. One that is read-only has likely handed over to another under the same name."""
    return isinstance(error, ResponseError) and not isinstance(error, ReadOnlyError)

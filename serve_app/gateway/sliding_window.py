"""A sliding window counter per minute and caller, in memory and, shared, in Redis.

Each caller has two counters: this window's, and the previous one's, weighted by the share of it that is less than a
window ago. So nobody gets twice the limit around the full minute, as with fixed windows, and a caller costs two
numbers, whatever it does. The arithmetic is the same here and in Redis. It says exactly when an amount will fit, which
`limits` and the like cannot for amounts other than 1; and Redis is reached through `RedisTier` only, so its timeouts
hold.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from serve_app.store.redis import RedisGone, RedisTier
from serve_app.store.redis_values import Damaged, listed, number

WINDOW_S: Final = 60

# The least recently seen is dropped first. Some 20 MB.
MAX_NAMES: Final = 100_000

Clock = Callable[[], float]

# Reads both counters and adds to one atomically, or two processes could each find the last place free. Removes what is
# not a counter: nothing is known then.
_TAKE: Final = """
local damaged = 0
local function counted(key)
  local said = redis.pcall('get', key)
  if said == false then return 0 end
  if type(said) == 'string' and #said < 16 and said:match('^%d+$') then return tonumber(said) end
  redis.call('del', key)
  damaged = 1
  return 0
end
local before = counted(KEYS[1])
local now = counted(KEYS[2])
if before * tonumber(ARGV[1]) + now + tonumber(ARGV[2]) > tonumber(ARGV[3]) then return {0, before, now, damaged} end
redis.call('incrby', KEYS[2], ARGV[2])
redis.call('expire', KEYS[2], ARGV[4])
return {1, before, now + tonumber(ARGV[2]), damaged}
"""


@dataclass(frozen=True, slots=True)
class Remaining:
    """The result of asking for an amount: whether it was `taken`, what is left, and in how many seconds there is more.

    If it was not taken, `wait_s` is the time until it would fit, if nothing else is taken meanwhile; if it was, the
    time until the window ends.
    """

    taken: bool
    left: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class WindowCounters:
    """Amounts taken in the current window, `now`, and in the one `before`; `share` of the current window has passed."""

    before: int
    now: int
    share: float

    def usage(self) -> float:
        """The amount that counts against the limit at this moment."""
        return self.before * (1 - self.share) + self.now

    def seconds_until(self, amount: int, limit: int) -> float:
        """The seconds until `amount`, which is at most `limit`, fits."""
        if self.usage() + amount <= limit:
            return 0.0
        if self.now + amount <= limit:
            return (1 - (limit - self.now - amount) / self.before - self.share) * WINDOW_S
        # In the next window, in which the present count fades.
        return (1 - self.share + 1 - (limit - amount) / self.now) * WINDOW_S


class SlidingWindows:
    """Used on one event loop. Calls `on_degraded` whenever Redis fails and this process's counters alone decide."""

    def __init__(self, redis: RedisTier | None, on_degraded: Callable[[], None], clock: Clock = time.time) -> None:
        self._redis = redis
        self._on_degraded = on_degraded
        # Wall-clock time: all processes must agree on the window.
        self._clock = clock
        self._local: OrderedDict[str, tuple[int, int, int]] = OrderedDict()

    async def take(self, name: str, amount: int, limit: int) -> Remaining:
        """Takes `amount` of the minute's `limit` of `name` if that much is left, else nothing."""
        passed = self._clock() / WINDOW_S
        window = int(passed)
        taken, counters = await self._take_amount(name, window, passed - window, amount, limit)
        wait = (1 - counters.share) * WINDOW_S if taken else counters.seconds_until(amount, limit)
        return Remaining(taken, max(0, int(limit - counters.usage())), wait)

    async def _take_amount(
        self, name: str, window: int, share: float, amount: int, limit: int
    ) -> tuple[bool, WindowCounters]:
        if self._redis is not None:
            try:
                taken, before, now = await self._take_in_redis(self._redis, name, window, share, amount, limit)
            except (RedisGone, Damaged):
                self._on_degraded()
            else:
                # The shared counters are where this process continues if Redis fails.
                self._remember(name, window, before, now)
                return bool(taken), WindowCounters(before, now, share)
        counters = self._recall(name, window, share)
        if counters.usage() + amount > limit:
            return False, counters
        self._remember(name, window, counters.before, counters.now + amount)
        return True, WindowCounters(counters.before, counters.now + amount, share)

    async def _take_in_redis(
        self, redis: RedisTier, name: str, window: int, share: float, amount: int, limit: int
    ) -> list[int]:
        keys = [f"{redis.prefix}limits:{name}:{index}" for index in (window - 1, window)]
        arguments: list[str | int] = [repr(1 - share), amount, limit, 2 * WINDOW_S]

        async def take(client: Redis) -> Any:
            return await client.eval(_TAKE, 2, *keys, *arguments)

        *figures, damaged = [number(figure) for figure in listed(await redis.call(take))]
        if damaged:
            redis.note_damage("a caller's counter")
        return figures

    def _recall(self, name: str, window: int, share: float) -> WindowCounters:
        if name not in self._local:
            return WindowCounters(0, 0, share)
        self._local.move_to_end(name)
        of, before, now = self._local[name]
        if of == window:
            return WindowCounters(before, now, share)
        return WindowCounters(now if of == window - 1 else 0, 0, share)

    def _remember(self, name: str, window: int, before: int, now: int) -> None:
        self._local[name] = (window, before, now)
        self._local.move_to_end(name)
        if len(self._local) > MAX_NAMES:
            self._local.popitem(last=False)

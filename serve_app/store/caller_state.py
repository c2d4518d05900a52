"""Small values that are kept for a caller for a while, in Redis where there is one, so that every ingress knows them.

In Redis they are a hash per caller and kind, signed. Without Redis, or while it does not answer, this process knows
what went through it. What Redis has not taken is sent to it later, unless it has something newer by then.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from cachetools import TTLCache

from deployments.signing.signed import BadSignature, sign, verify
from serve_app.store.redis import RedisGone, RedisTier, WrongType

MAX_CALLERS: Final = 10_000
MAX_ENTRIES: Final = 256
MAX_ENTRY_BYTES: Final = 512 * 1024
MAX_FILE_BYTES: Final = MAX_ENTRY_BYTES // 2


# Names lie beside what is kept by when they are forgotten, so that a busy caller's hash does not fill with old ones.
# ARGV: now, the seconds that all is kept, and of each change its name, its data ('' removes), when it is forgotten, and
# '1' if it comes late: then it does not replace what is newer. Clocks differ, so one that comes at once always counts.
_CHANGE: Final = """
for _, name in ipairs(redis.call('zrangebyscore', KEYS[2], '-inf', ARGV[1])) do redis.call('hdel', KEYS[1], name) end
redis.call('zremrangebyscore', KEYS[2], '-inf', ARGV[1])
for i = 3, #ARGV, 4 do
  local there = ARGV[i + 3] == '1' and redis.call('zscore', KEYS[2], ARGV[i])
  if not there or tonumber(there) <= tonumber(ARGV[i + 2]) then
    if ARGV[i + 1] == '' then
      redis.call('hdel', KEYS[1], ARGV[i])
      redis.call('zrem', KEYS[2], ARGV[i])
    else
      redis.call('hset', KEYS[1], ARGV[i], ARGV[i + 1])
      redis.call('zadd', KEYS[2], ARGV[i + 2], ARGV[i])
    end
  end
end
redis.call('expire', KEYS[1], ARGV[2])
redis.call('expire', KEYS[2], ARGV[2])
"""
_LIMITS: Final = (MAX_ENTRIES, MAX_ENTRY_BYTES)

# What is larger than what this service puts there is not read at all.
_READ: Final = """
local found = {}
for _, name in ipairs(redis.call('zrevrange', KEYS[2], 0, tonumber(ARGV[1]) - 1)) do
  if #name <= 256 and redis.call('hstrlen', KEYS[1], name) <= tonumber(ARGV[2]) then
    local value = redis.call('hget', KEYS[1], name)
    if value then
      found[#found + 1] = name
      found[#found + 1] = value
    end
  end
end
return found
"""


@dataclass(frozen=True, slots=True)
class StateEntry:
    """A value, which is JSON, with a file, and when it is forgotten (seconds since 1970)."""

    value: Any
    file: bytes = b""
    until: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """What is to be under a `name` in Redis: signed bytes, or nothing, for as long as anything before it would be."""

    name: str
    data: bytes
    until: float


class CallerState:
    """Entries of one `kind`, by caller and name. An entry is forgotten `ttl_s` seconds after it was put.

    Used on one event loop. What Redis has that is not ours is left out, and replaced where it is in our way.
    """

    def __init__(
        self, kind: str, ttl_s: float, redis: RedisTier | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._kind, self._ttl_s, self._redis, self._clock = kind, ttl_s, redis, clock
        self._signing_key = b"" if redis is None else redis.signing_key(f"caller {kind}")
        self._here: TTLCache[str, dict[str, StateEntry]] = TTLCache(MAX_CALLERS, ttl_s, timer=clock)
        # By caller and name, until Redis says that it has them.
        self._unsent: TTLCache[str, dict[str, _Change]] = TTLCache(MAX_CALLERS, ttl_s, timer=clock)

    async def put(self, caller: str, name: str, value: Any, file: bytes = b"") -> None:
        """Keeps a value under the caller's `name`, in place of an earlier one."""
        # A file is only for show: without it the value is still right.
        file = file if len(file) <= MAX_FILE_BYTES else b""
        entry = StateEntry(value, file, self._clock() + self._ttl_s)
        entries = {each: kept for each, kept in self._current(caller).items() if each != name}
        self._here[caller] = dict(list(entries.items())[-MAX_ENTRIES + 1 :]) | {name: entry}
        if self._redis is not None:
            signed = sign(f"{self._place(caller)}/{name}", [value, entry.until], (file,), self._signing_key)
            await self._change(self._redis, caller, _Change(name, signed, entry.until))

    async def remove(self, caller: str, name: str) -> None:
        """Forgets what is kept under the caller's `name`."""
        entries = self._current(caller)
        entries.pop(name, None)
        if self._redis is not None:
            await self._change(self._redis, caller, _Change(name, b"", self._clock() + self._ttl_s))

    async def read(self, caller: str) -> Mapping[str, StateEntry]:
        """Returns the caller's entries by their names."""
        if self._redis is None:
            return dict(self._current(caller))
        try:
            if caller in self._unsent:
                await self._send(self._redis, caller)
            found = await self._script(self._redis, caller, _READ, *_LIMITS)
        except RedisGone:
            return dict(self._current(caller))
        return dict(self._unpack(self._place(caller), found))

    async def _change(self, redis: RedisTier, caller: str, change: _Change) -> None:
        unsent = {name: each for name, each in self._unsent.get(caller, {}).items() if name != change.name}
        self._unsent[caller] = dict(list(unsent.items())[-MAX_ENTRIES + 1 :]) | {change.name: change}
        # Where Redis does not take it, this process has it.
        with suppress(RedisGone):
            await self._send(redis, caller, change)

    async def _send(self, redis: RedisTier, caller: str, new: _Change | None = None) -> None:
        """Has Redis take what it has not taken yet, of which all but `new` comes late. Raises RedisGone."""
        sent = list(self._unsent[caller].values())
        arguments: list[bytes | str | float] = [self._clock(), max(1, round(self._ttl_s))]
        for each in sent:
            arguments += [each.name, each.data, each.until, int(each is not new)]
        await self._script(redis, caller, _CHANGE, *arguments)
        unsent = {name: each for name, each in self._unsent.get(caller, {}).items() if each not in sent}
        self._unsent.pop(caller, None)
        if unsent:
            self._unsent[caller] = unsent

    async def _script(self, redis: RedisTier, caller: str, script: str, *arguments: bytes | str | float) -> Any:
        """Runs a script; once more where something of another type had taken the place of what is ours."""
        place = self._place(caller)
        kinds = {place: "hash", f"{place}:times": "zset"}

        def call() -> Awaitable[Any]:
            return redis.call(lambda connection: connection.eval(script, len(kinds), *kinds, *arguments))

        try:
            return await call()
        except WrongType:
            await redis.mend(kinds)
            return await call()

    def _current(self, caller: str) -> dict[str, StateEntry]:
        kept = self._here.get(caller, {})
        for name in [name for name, entry in kept.items() if entry.until <= self._clock()]:
            del kept[name]
        return kept

    def _place(self, caller: str) -> str:
        # Of a fixed length, and no caller's own words.
        prefix = "" if self._redis is None else self._redis.prefix
        return f"{prefix}{self._kind}:{sha256(caller.encode()).hexdigest()}"

    def _unpack(self, place: str, found: Sequence[bytes]) -> Iterator[tuple[str, StateEntry]]:
        assert self._redis is not None
        for name_bytes, data in zip(found[::2], found[1::2], strict=True):
            name = name_bytes.decode(errors="replace")
            try:
                (value, until), (file,) = verify(f"{place}/{name}", data, self._signing_key)
            except BadSignature:
                self._redis.note_damage("a caller's state")
                continue
            if until > self._clock():
                yield name, StateEntry(value, file, until)

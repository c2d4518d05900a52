"""Small values that are kept for a caller for a while, in Redis where there is one, so that every ingress knows them.

In Redis they are a hash per caller and kind, signed. Without Redis, or while it does not answer, this process knows
what went through it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from cachetools import TTLCache

from deployments.signing.signed import BadSignature, sign, verify
from serve_app.store.redis import RedisGone, RedisTier

MAX_CALLERS: Final = 10_000
MAX_ENTRIES: Final = 256
MAX_ENTRY_BYTES: Final = 512 * 1024
MAX_FILE_BYTES: Final = MAX_ENTRY_BYTES // 2


# Names lie beside what is kept by when they are forgotten, so that a busy caller's hash does not fill with old ones.
# What is of another type, or larger than what this service puts there, is not read at all.
_PUT: Final = """
for _, name in ipairs(redis.call('zrangebyscore', KEYS[2], '-inf', ARGV[4])) do redis.call('hdel', KEYS[1], name) end
redis.call('zremrangebyscore', KEYS[2], '-inf', ARGV[4])
redis.call('hset', KEYS[1], ARGV[1], ARGV[2])
redis.call('zadd', KEYS[2], ARGV[3], ARGV[1])
redis.call('expire', KEYS[1], ARGV[5])
redis.call('expire', KEYS[2], ARGV[5])
"""
_LIMITS: Final = (MAX_ENTRIES, MAX_ENTRY_BYTES)

_READ: Final = """
local found = {}
for i = 1, 2 do
  local kind = redis.call('type', KEYS[i]).ok
  if kind ~= (i == 1 and 'hash' or 'zset') then return found end
end
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


class CallerState:
    """Entries of one `kind`, by caller and name. An entry is forgotten `ttl_s` seconds after it was put.

    Used on one event loop. What Redis has that is not ours is left out.
    """

    def __init__(
        self, kind: str, ttl_s: float, redis: RedisTier | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._kind, self._ttl_s, self._redis, self._clock = kind, ttl_s, redis, clock
        self._signing_key = b"" if redis is None else redis.signing_key(f"caller {kind}")
        self._here: TTLCache[str, dict[str, StateEntry]] = TTLCache(MAX_CALLERS, ttl_s, timer=clock)

    async def put(self, caller: str, name: str, value: Any, file: bytes = b"") -> None:
        """Keeps a value under the caller's `name`, in place of an earlier one."""
        # A file is only for show: without it the value is still right.
        file = file if len(file) <= MAX_FILE_BYTES else b""
        entry = StateEntry(value, file, self._clock() + self._ttl_s)
        entries = {each: kept for each, kept in self._current(caller).items() if each != name}
        self._here[caller] = dict(list(entries.items())[-MAX_ENTRIES + 1 :]) | {name: entry}
        if self._redis is None:
            return
        place = self._place(caller)
        signed = sign(f"{place}/{name}", [value, entry.until], (file,), self._signing_key)
        try:
            now, seconds = self._clock(), max(1, round(self._ttl_s))
            arguments = (name, signed, entry.until, now, seconds)
            await self._redis.call(lambda redis: redis.eval(_PUT, 2, place, f"{place}:times", *arguments))
        except RedisGone:
            # This process has it.
            return

    async def remove(self, caller: str, name: str) -> None:
        """Forgets what is kept under the caller's `name`."""
        entries = self._current(caller)
        entries.pop(name, None)
        if self._redis is None:
            return
        place = self._place(caller)
        try:
            await self._redis.call(lambda redis: redis.hdel(place, name))
        except RedisGone:
            # It ages out.
            return

    async def read(self, caller: str) -> Mapping[str, StateEntry]:
        """Returns the caller's entries by their names."""
        if self._redis is None:
            return dict(self._current(caller))
        place = self._place(caller)
        try:
            found = await self._redis.call(lambda redis: redis.eval(_READ, 2, place, f"{place}:times", *_LIMITS))
        except RedisGone:
            return dict(self._current(caller))
        return dict(self._unpack(place, found))

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

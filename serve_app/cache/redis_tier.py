"""Keeps results in Redis, which all ingress processes share.

Every key contains the *generation*, a random word that is itself in Redis. Emptying the cache draws another: what was
there is never found again and ages out, without a search through Redis' keys. A counter would not do: where Redis
evicts it, for want of memory, it would come back to generations whose results are still there. A result is signed for
its key: nobody can copy it into a later generation.
"""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from serve_app.cache.entry import BadEntry, CacheEntry, pack, unpack
from serve_app.generation.fingerprint import Fingerprint
from serve_app.store.redis import RedisGone, RedisTier
from serve_app.store.redis_values import Damaged, content, word

log = logging.getLogger(__name__)

# More would not come through within a call's time-out on most networks, and hold up everybody's smaller ones.
MAX_ENTRY_BYTES: Final = 4 * 1024 * 1024

# An entry's header may be longer than what it is about, but not by more.
MAX_READ_BYTES: Final = 2 * MAX_ENTRY_BYTES

_WORD_BYTES: Final = 64

# Results on their way to Redis; beyond, they are not shared.
MAX_WRITES: Final = 16

# How long another process may go on serving from its memory what somebody has emptied.
GENERATION_AGE_S: Final = 1.0

Clock = Callable[[], float]


# Changed with the form of an entry: processes of two versions must not take each other's for damage.
_KIND: Final = "result:3"


class SharedTier:
    """Used on one event loop. Nothing here raises RedisGone but `empty`.

    `counts` has `bad_entry` (bytes that were not ours), `too_large` and `write_dropped` (results that were not shared).
    `emptied` is called when somebody, anywhere, has emptied the cache.
    """

    def __init__(
        self,
        redis: RedisTier,
        key: bytes,
        ttl_s: float,
        emptied: Callable[[], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self.redis = redis
        self.counts: Counter[str] = Counter()
        self._key = key
        self._ttl_s = ttl_s
        self._emptied = emptied
        self._clock = clock
        self._prefix = f"{redis.prefix}cache:"
        self._generation = b""
        self._looked = -GENERATION_AGE_S
        # asyncio keeps weak references only.
        self._writes: set[asyncio.Task[None]] = set()

    async def get(self, fingerprint: Fingerprint) -> CacheEntry | None:
        """Returns the entry under that fingerprint's hash; the caller must check that it has that fingerprint."""
        return await self._entry(f"{_KIND}:{fingerprint.key}")

    async def latest(self, fingerprint: Fingerprint) -> CacheEntry | None:
        """As `get`, for the result that came last of the same work, whatever its seed."""
        found = await self._fetched(f"latest:{fingerprint.work_key}", _WORD_BYTES)
        try:
            return None if found is None else await self._entry(f"{_KIND}:{word(found.data)}")
        except Damaged:
            self._note("the place of a result")
            return None

    def put(self, entry: CacheEntry) -> None:
        """Begins to store the entry, and does not wait. It belongs to the generation of now, even if that ends soon."""
        if entry.size > MAX_ENTRY_BYTES:
            self.counts["too_large"] += 1
        elif len(self._writes) >= MAX_WRITES or not self._generation:
            self.counts["write_dropped"] += 1
        else:
            task = asyncio.get_running_loop().create_task(self._write(entry, self._generation))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def keep_up(self) -> None:
        """Finds out whether the cache was emptied, if that was not asked for a while."""
        if self._clock() - self._looked >= GENERATION_AGE_S:
            # Before the answer, so that those who come in the meantime do not ask, too.
            self._looked = self._clock()
            await self._fetched(None)

    async def empty(self) -> None:
        """Makes all entries unfindable, for every process. Raises RedisGone where Redis does not answer."""
        generation = _drawn()
        await self.redis.call(lambda redis: redis.set(f"{self._prefix}generation", generation))
        self._move_to(generation)

    async def close(self) -> None:
        """Waits for entries on their way, no longer than a call may take."""
        await asyncio.gather(*self._writes)

    async def _entry(self, name: str) -> CacheEntry | None:
        found = await self._fetched(name)
        if found is None:
            return None
        try:
            # Megabytes to hash, beside a loop that everybody needs.
            return await asyncio.to_thread(unpack, found.key, found.data, self._key)
        except BadEntry as error:
            self._note(f"a result ({error})")
            return None

    def _note(self, what: str) -> None:
        self.counts["bad_entry"] += 1
        self.redis.note_damage(what)

    async def _fetched(self, name: str | None, most: int = MAX_READ_BYTES) -> "_Found | None":
        """What is under that name in the generation of now; None where nothing is, or Redis is gone."""
        try:
            return await self.redis.call(lambda redis: self._fetch(redis, name, most))
        except RedisGone:
            return None
        except Damaged as error:
            self._note(f"a result ({error})")
            return None

    async def _fetch(self, redis: Redis, name: str | None, most: int) -> "_Found | None":
        """In one round trip, unless the generation is another than it was. Raises Damaged."""
        before = self._generation
        asked = redis.pipeline(transaction=False)
        asked.getrange(f"{self._prefix}generation", 0, _WORD_BYTES)
        if name is not None:
            asked.getrange(self._name(name, before), 0, most)
        said, *found = await asked.execute(raise_on_error=False)
        generation = self._read(said) or await self._begin(redis, instead=bool(said))
        self._looked = self._clock()
        if generation and generation != before:
            self._move_to(generation)
            asked = redis.pipeline(transaction=False)
            if name is not None:
                asked.getrange(self._name(name, generation), 0, most)
            found = await asked.execute(raise_on_error=False)
        data = content(found[0], most) if found else None
        return None if name is None or data is None else _Found(self._name(name, generation), data)

    def _read(self, said: Any) -> bytes:
        """The generation; nothing where there is none, or something else in its place."""
        try:
            found = content(said, _WORD_BYTES)
            return b"" if found is None else word(found).encode()
        except Damaged:
            self._note("the cache's generation")
            return b""

    async def _begin(self, redis: Redis, instead: bool) -> bytes:
        """A new generation; `instead` of what is there, or only where nothing is still."""
        # Somebody else may be doing the same: one of them wins, and both go by it.
        await redis.set(f"{self._prefix}generation", _drawn(), nx=not instead)
        return self._read(await redis.getrange(f"{self._prefix}generation", 0, _WORD_BYTES))

    async def _write(self, entry: CacheEntry, generation: bytes) -> None:
        milliseconds = max(1, round(self._ttl_s * 1000))
        result = self._name(f"{_KIND}:{entry.fingerprint.key}", generation)
        data = await asyncio.to_thread(pack, result, entry, self._key)
        latest = self._name(f"latest:{entry.fingerprint.work_key}", generation)

        async def both(redis: Redis) -> None:
            asked = redis.pipeline(transaction=False)
            asked.set(result, data, px=milliseconds)
            asked.set(latest, entry.fingerprint.key, px=milliseconds)
            await asked.execute()

        try:
            await self.redis.call(both)
        except RedisGone:
            self.counts["write_dropped"] += 1

    def _name(self, name: str, generation: bytes) -> str:
        return f"{self._prefix}{generation.decode(errors='replace')}:{name}"

    def _move_to(self, generation: bytes) -> None:
        self._generation = generation
        self._emptied()


@dataclass(frozen=True, slots=True)
class _Found:
    """What was read, and the `key` in Redis that it was under."""

    key: str
    data: bytes


def _drawn() -> bytes:
    return secrets.token_hex(8).encode()

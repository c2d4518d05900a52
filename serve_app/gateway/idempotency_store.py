"""Stored answers in Redis, and a lock for each that is being made. A lock expires if its process dies."""

import asyncio
import contextlib
import logging
import re
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import Field
from redis.asyncio import Redis

from deployments.signing.signed import BadSignature, sign, verify
from serve_app.config.strict import Strict
from serve_app.store.redis import RedisGone, RedisTier
from serve_app.store.redis_values import Damaged, content
from serve_app.tasks import cancel_and_wait

log = logging.getLogger(__name__)

# A lock that is not renewed expires after this long.
LOCK_S: Final = 15.0
RENEW_S: Final = 5.0

# More would exceed a call's timeout on most networks, and hold up everybody's smaller ones.
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024

# Headers and signature included.
MAX_READ_BYTES: Final = MAX_ANSWER_BYTES + 2**20

# Changed with the form of what is stored: processes of two versions must not take each other's for damage.
_KIND: Final = "idempotency:2"

_SEEN_BYTES: Final = 256
_LOCK: Final = re.compile(rb"lock:[0-9a-f]{16}:((?:[0-9a-f]{2}){1,64})")

# Only for the holder: a process that stalled for longer than its lock must not touch its successor's.
_IF_MINE: Final = "if redis.call('get', KEYS[1]) == ARGV[1] then return {} else return 0 end"
_RENEW: Final = _IF_MINE.format("redis.call('pexpire', KEYS[1], ARGV[2])")
_RELEASE: Final = _IF_MINE.format("redis.call('del', KEYS[1])")
_ANSWER: Final = _IF_MINE.format("redis.call('set', KEYS[1], ARGV[3], 'PX', ARGV[2])")

# Replaces only what was seen, as far as it was seen, of whatever type. KEYS: its key. ARGV: the lock, its time in
# milliseconds, what was seen, its length.
_REPLACE: Final = """
if redis.call('type', KEYS[1]).ok == 'string' then
  if redis.call('getrange', KEYS[1], 0, math.max(1, tonumber(ARGV[4])) - 1) ~= ARGV[3] then return 0 end
end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request with a key: `name` identifies the key and its tenant, `fingerprint` the request."""

    name: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A complete HTTP response."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes, with an allowance for overhead."""
        return len(self.body) + sum(len(name) + len(value) for name, value in self.headers) + 512


@dataclass(frozen=True, slots=True)
class HeldElsewhere:
    """Another process is running the request with that fingerprint."""

    fingerprint: bytes


class _Head(Strict):
    """The stored part of an answer besides its body."""

    fingerprint: str
    status: int = Field(ge=200, le=599)
    headers: list[tuple[str, str]]


class RedisIdempotencyStore:
    """The answers that processes share through Redis, and how long they are kept."""

    def __init__(self, redis: RedisTier, key: bytes, ttl_s: float) -> None:
        self.redis = redis
        self.ttl_ms = round(ttl_s * 1000)
        self._key = key

    def lock(self, request: IdempotentRequest) -> "Lock":
        """The lock on `request`, not yet taken."""
        return Lock(self, request)

    def pack(self, name: str, fingerprint: bytes, response: StoredResponse) -> bytes:
        """Returns the response as bytes, signed for this name: it cannot be moved to another caller's."""
        head = {"fingerprint": fingerprint.hex(), "status": response.status, "headers": response.headers}
        return sign(f"{_KIND}:{name}", head, (response.body,), self._key)

    def unpack(self, name: str, data: bytes) -> tuple[bytes, StoredResponse] | None:
        """Returns the fingerprint and the response; None unless they were packed under that name, with our key."""
        try:
            content, (body,) = verify(f"{_KIND}:{name}", data, self._key)
            head = _Head.model_validate(content)
            return bytes.fromhex(head.fingerprint), StoredResponse(head.status, tuple(head.headers), body)
        except BadSignature:
            log.warning("a kept answer in Redis is not used: its signature is wrong")
        except ValueError:
            log.warning("a kept answer in Redis is not used: another version wrote it")
        return None


class Lock:
    """A lock in Redis. `lost` counts the calls that Redis did not answer; the holder goes on without them."""

    def __init__(self, shared: RedisIdempotencyStore, request: IdempotentRequest) -> None:
        self.lost = 0
        self._shared, self._request = shared, request
        self._name = f"{shared.redis.prefix}{_KIND}:{request.name}"
        self._value = f"lock:{secrets.token_hex(8)}:{request.fingerprint.hex()}".encode()
        self._renewing: asyncio.Task[None] | None = None

    async def take(self) -> tuple[bytes, StoredResponse] | HeldElsewhere | None:
        """Takes the lock. Returns None if that worked or Redis is gone, else what is there: an answer or a lock."""

        try:
            # Twice, because a damaged value may change before the lock replaces it.
            for _ in range(2):
                found, left_ms = await self._shared.redis.call(self._set_or_read)
                if found is None or found == self._value:
                    self._start_renewing()
                    return None
                if (other := await self._read(found, left_ms)) is not None:
                    return other
                self._shared.redis.note_damage("what is kept under an Idempotency-Key")
                if await self._replace(found):
                    self._start_renewing()
                    return None
        except RedisGone:
            self.lost += 1
        return None

    def _start_renewing(self) -> None:
        """Keeps the lock, which is ours now, from expiring."""
        self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _set_or_read(self, client: Redis) -> tuple[bytes | None, int]:
        """Sets the lock if nothing is there. Returns what is there instead, if anything, and its time to live in ms."""
        asked = client.pipeline(transaction=True)
        asked.set(self._name, self._value, nx=True, px=round(LOCK_S * 1000))
        asked.getrange(self._name, 0, MAX_READ_BYTES)
        asked.pttl(self._name)
        taken, found, left_ms = await asked.execute(raise_on_error=False)
        if taken is True:
            return None, left_ms
        try:
            return content(found, MAX_READ_BYTES) or b"", left_ms
        except Damaged:
            return (found[:_SEEN_BYTES] if isinstance(found, bytes) else b""), left_ms

    async def _read(self, found: bytes, left_ms: int) -> tuple[bytes, StoredResponse] | HeldElsewhere | None:
        """Decodes another process's lock or answer; None for anything else."""
        lock = _LOCK.fullmatch(found)
        if lock is not None:
            # A lock without an expiry was not set by us.
            return HeldElsewhere(bytes.fromhex(lock[1].decode())) if 0 <= left_ms <= LOCK_S * 1000 else None
        # In a thread: there may be megabytes to hash.
        return await asyncio.to_thread(self._shared.unpack, self._request.name, found)

    async def _replace(self, found: bytes) -> bool:
        """Replaces a damaged value by the lock; False if it has just changed."""
        seen = found[:_SEEN_BYTES]
        arguments = (self._value, round(LOCK_S * 1000), seen, len(seen))
        return bool(await self._shared.redis.call(lambda client: client.eval(_REPLACE, 1, self._name, *arguments)))

    async def release(self, answer: StoredResponse | None) -> None:
        """Replaces the lock by `answer`, or deletes it."""
        if self._renewing is None:
            return
        await cancel_and_wait(self._renewing)
        if answer is None or answer.size > MAX_ANSWER_BYTES:
            await self._eval(_RELEASE)
            return
        data = await asyncio.to_thread(self._shared.pack, self._request.name, self._request.fingerprint, answer)
        await self._eval(_ANSWER, self._shared.ttl_ms, data)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            await self._eval(_RENEW, round(LOCK_S * 1000))

    async def _eval(self, script: str, *arguments: Any) -> None:
        with contextlib.suppress(RedisGone):
            await self._shared.redis.call(lambda client: client.eval(script, 1, self._name, self._value, *arguments))
            return
        self.lost += 1

"""Keeps messages in Redis, where any ingress sends them, and in this process while Redis does not answer.

For each kind there are `outbox:<kind>:due`, a sorted set of ids by the time in milliseconds at which each may be
claimed, and the hash `outbox:<kind>:messages`. A claim moves a message's time to the claim's end: until then nobody
else sees it, and afterwards anybody does. The time is Redis' own. Of a job, `job:<id>:callbacks` has what has come of
its messages, and `job:<id>:uploads` the counts. Messages and settlements are signed (`deployments/signing/signed.py`).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from deployments.signing.signed import BadSignature, sign, verify
from serve_app.callbacks.message import MESSAGE_ID, Kind, Message
from serve_app.callbacks.outbox import Claim, MemoryOutbox, UploadCount
from serve_app.jobs.callbacks import Settlement
from serve_app.store.redis import RedisGone, RedisTier, WrongType
from serve_app.store.redis_values import Damaged, listed, number, words

# Nobody's request waits for these calls.
CALL_S: Final = 5.0

# As long as a job may be unfinished: what lies longer belongs to nothing.
KEPT_S: Final = 7 * 24 * 3600

MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_SETTLEMENTS: Final = 20_000

_NOW: Final = """
local clock = redis.call('time')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""

# KEYS: due, messages. ARGV: most, seconds, then id and message by turns. Gives the ids of those without room.
_ADD: Final = (
    _NOW
    + """
local without = {}
for i = 3, #ARGV, 2 do
  if not redis.call('zscore', KEYS[1], ARGV[i]) then
    if redis.call('zcard', KEYS[1]) >= tonumber(ARGV[1]) then
      without[#without + 1] = ARGV[i]
    else
      redis.call('hset', KEYS[2], ARGV[i], ARGV[i + 1])
      redis.call('zadd', KEYS[1], now, ARGV[i])
    end
  end
end
redis.call('expire', KEYS[1], ARGV[2])
redis.call('expire', KEYS[2], ARGV[2])
return without
"""
)

# KEYS: due, messages. ARGV: most, milliseconds, bytes. Gives id, end of the claim, and message by turns. An id without
# a message, or with one that is larger than ours, is dropped.
_CLAIM: Final = (
    _NOW
    + """
local out = {}
for _, id in ipairs(redis.call('zrangebyscore', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local long = redis.call('hstrlen', KEYS[2], id)
  if #id > 128 or long == 0 or long > tonumber(ARGV[3]) then
    redis.call('zrem', KEYS[1], id)
    redis.call('hdel', KEYS[2], id)
  else
    local until_ = now + tonumber(ARGV[2])
    redis.call('zadd', KEYS[1], until_, id)
    out[#out + 1] = id
    out[#out + 1] = until_
    out[#out + 1] = redis.call('hget', KEYS[2], id)
  end
end
return out
"""
)

# KEYS: due, messages. ARGV: id, end of the claim, message, milliseconds.
_POSTPONE: Final = (
    _NOW
    + """
if tonumber(redis.call('zscore', KEYS[1], ARGV[1]) or '-1') ~= tonumber(ARGV[2]) then return 0 end
redis.call('hset', KEYS[2], ARGV[1], ARGV[3])
redis.call('zadd', KEYS[1], now + tonumber(ARGV[4]), ARGV[1])
return 1
"""
)

_REMOVE: Final = "redis.call('zrem', KEYS[1], ARGV[1]) redis.call('hdel', KEYS[2], ARGV[1]) return 1"

# KEYS: callbacks, uploads. ARGV: place, settlement, whether it counts, seconds. Gives how many count, of how many.
_SETTLE: Final = """
local new = redis.call('hset', KEYS[1], ARGV[1], ARGV[2])
if new == 1 and ARGV[3] == '1' then redis.call('hincrby', KEYS[2], 'settled', 1) end
redis.call('expire', KEYS[1], ARGV[4])
redis.call('expire', KEYS[2], ARGV[4])
return redis.call('hmget', KEYS[2], 'settled', 'expected')
"""

# KEYS: uploads. ARGV: how many, seconds.
_EXPECT: Final = """
redis.call('hset', KEYS[1], 'expected', ARGV[1])
redis.call('expire', KEYS[1], ARGV[2])
return redis.call('hmget', KEYS[1], 'settled', 'expected')
"""

# KEYS: callbacks. ARGV: how many, bytes of each. Gives place and settlement by turns.
_SETTLEMENTS: Final = """
local out = {}
if redis.call('hlen', KEYS[1]) > tonumber(ARGV[1]) then return out end
for _, place in ipairs(redis.call('hkeys', KEYS[1])) do
  if redis.call('hstrlen', KEYS[1], place) <= tonumber(ARGV[2]) then
    out[#out + 1] = place
    out[#out + 1] = redis.call('hget', KEYS[1], place)
  end
end
return out
"""

_KINDS: Final = {"due": "zset", "messages": "hash", "callbacks": "hash", "uploads": "hash"}


class RedisOutbox(MemoryOutbox):
    """An `Outbox` that processes share; what Redis does not take is in this process' memory, as without it."""

    def __init__(self, tier: RedisTier, waiting: int, jobs: int) -> None:
        super().__init__(waiting, jobs)
        self._tier, self._key = tier, tier.signing_key("callbacks")

    async def add(self, messages: Sequence[Message]) -> Collection[str]:
        if not messages:
            return ()
        pairs = [part for each in messages for part in (each.id, self._pack(each))]
        try:
            said = await self._script(_ADD, self._queue(messages[0].kind), self._most, KEPT_S, *pairs)
        except RedisGone:
            return await super().add(messages)
        return words(said, MESSAGE_ID)

    async def claim(self, kind: Kind, most: int, hold_s: float) -> list[Claim]:
        """First those that are here only."""
        claims = await super().claim(kind, most, hold_s)
        try:
            arguments = (most - len(claims), int(hold_s * 1000), MAX_MESSAGE_BYTES)
            said = listed(await self._script(_CLAIM, self._queue(kind), *arguments)) if arguments[0] else []
        except (RedisGone, Damaged):
            return claims
        for message_id, until, data in zip(said[::3], said[1::3], said[2::3], strict=True):
            message = self._unpack(kind, message_id, data)
            if message is not None:
                claims.append(Claim(message, number(until)))
            else:
                self._tier.note_damage(f"a {kind}")
                await self._forget(kind, message_id)
        return claims

    async def postpone(self, claim: Claim, message: Message, delay_s: float) -> None:
        if self._holds(claim):
            await super().postpone(claim, message, delay_s)
            return
        arguments = (message.id, claim.until, self._pack(message), int(delay_s * 1000))
        try:
            await self._script(_POSTPONE, self._queue(message.kind), *arguments)
        except RedisGone:
            # Its claim runs out, and it is sent again.
            return

    async def remove(self, claim: Claim) -> None:
        if self._holds(claim):
            await super().remove(claim)
        else:
            await self._forget(claim.message.kind, claim.message.id)

    async def settle(self, message: Message, settlement: Settlement) -> UploadCount:
        packed = sign(self._place(message.job, message.place), settlement.model_dump(mode="json"), (), self._key)
        arguments = (message.place, packed, int(message.kind == "upload"), KEPT_S)
        try:
            said = await self._script(_SETTLE, self._parts(message.job), *arguments)
        except RedisGone:
            return await super().settle(message, settlement)
        return self._with_own(message.job, said)

    async def expect(self, job_id: str, uploads: int) -> UploadCount:
        try:
            said = await self._script(_EXPECT, self._parts(job_id)[1:], uploads, KEPT_S)
        except RedisGone:
            return await super().expect(job_id, uploads)
        return self._with_own(job_id, said)

    async def settlements(self, job_id: str) -> Mapping[str, Settlement]:
        found = dict(await super().settlements(job_id))
        try:
            said = listed(await self._script(_SETTLEMENTS, self._parts(job_id)[:1], MAX_SETTLEMENTS, MAX_MESSAGE_BYTES))
        except (RedisGone, Damaged):
            return found
        for place_bytes, data in zip(said[::2], said[1::2], strict=True):
            place = place_bytes.decode("ascii", errors="replace")
            try:
                found[place] = Settlement.model_validate(verify(self._place(job_id, place), data, self._key)[0])
            except (BadSignature, ValidationError):
                self._tier.note_damage("what has come of a callback")
        return found

    def _with_own(self, job_id: str, said: Any) -> UploadCount:
        """Adds what this process has noted alone, while Redis did not answer."""
        settled, expected = listed(said)
        own = self.count(job_id)
        return UploadCount(number(settled) + own.settled, own.expected if expected is None else number(expected))

    async def _forget(self, kind: Kind, message_id: Any) -> None:
        try:
            await self._script(_REMOVE, self._queue(kind), message_id)
        except RedisGone:
            # It is claimed again once its claim has run out.
            return

    async def _script(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        try:
            return await self._tier.call(lambda redis: redis.eval(script, len(keys), *keys, *arguments), CALL_S)
        except WrongType:
            await self._tier.mend({key: _KINDS[key.rpartition(":")[2]] for key in keys})
            return await self._tier.call(lambda redis: redis.eval(script, len(keys), *keys, *arguments), CALL_S)

    def _queue(self, kind: Kind) -> tuple[str, str]:
        return f"{self._tier.prefix}outbox:{kind}:due", f"{self._tier.prefix}outbox:{kind}:messages"

    def _parts(self, job_id: str) -> tuple[str, str]:
        return f"{self._tier.prefix}job:{job_id}:callbacks", f"{self._tier.prefix}job:{job_id}:uploads"

    def _place(self, job_id: str, place: str) -> str:
        return f"{job_id}:{place}"

    def _pack(self, message: Message) -> bytes:
        return sign(f"{message.kind}:{message.id}", message.model_dump(mode="json"), (), self._key)

    def _unpack(self, kind: Kind, message_id: bytes, data: bytes) -> Message | None:
        try:
            return Message.model_validate(verify(f"{kind}:{message_id.decode()}", data, self._key)[0])
        except (BadSignature, ValidationError, UnicodeDecodeError):
            return None

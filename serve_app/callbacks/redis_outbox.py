"""Keeps messages in Redis, where any ingress sends them, and in this process while Redis does not answer.

Under `outbox:<kind>:` there are the hash `messages`, and for each tenant and host the sorted set
`queue:<tenant>:<host>` of ids by the time in milliseconds at which each may be claimed. A claim moves a message's time
to the claim's end: until then nobody else sees it, and afterwards anybody does. The time is Redis' own. The sorted sets
`hosts:<tenant>` and `tenants` have when each has its turn, `waiting` how many messages each tenant has. Of a job,
`job:<id>:callbacks` has what has come of its messages, and `job:<id>:uploads` the counts. Messages and settlements are
signed (`deployments/signing/signed.py`). In names, a digest stands for a tenant or a host.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from deployments.signing.signed import BadSignature, sign, verify
from serve_app.callbacks.message import MESSAGE_ID, Claim, Kind, Message
from serve_app.callbacks.outbox import MemoryOutbox, UploadCount
from serve_app.callbacks.outbox_scripts import ADD, CLAIM, NAMELESS, POSTPONE, REMOVE
from serve_app.callbacks.slots import Slots
from serve_app.jobs.callbacks import Settlement
from serve_app.store.redis import RedisGone, RedisTier, WrongType
from serve_app.store.redis_values import Damaged, listed, number, words

# Nobody's request waits for these calls.
CALL_S: Final = 5.0

# As long as a job may be unfinished: what lies longer belongs to nothing.
KEPT_S: Final = 7 * 24 * 3600

MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_SETTLEMENTS: Final = 20_000

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

_KINDS: Final = {
    "messages": "hash",
    "tenants": "zset",
    "waiting": "hash",
    "due": "zset",
    "callbacks": "hash",
    "uploads": "hash",
}


class RedisOutbox(MemoryOutbox):
    """An `Outbox` that processes share; what Redis does not take is in this process' memory, as without it."""

    def __init__(self, tier: RedisTier, waiting: int, jobs: int) -> None:
        super().__init__(waiting, jobs)
        self._tier, self._key = tier, tier.signing_key("callbacks")

    async def add(self, messages: Sequence[Message]) -> Collection[str]:
        # While Redis did not answer, they may have been kept, or settled, here.
        messages = [message for message in messages if not self._knows(message)]
        if not messages:
            return ()
        kind, tenant = messages[0].kind, _word_of_tenant(messages[0].tenant)
        parts = [part for each in messages for part in (each.place, _word(each.host), each.id, self._pack(each))]
        settled = self._parts(messages[0].job)[0]
        try:
            said = await self._queue_script(ADD, kind, tenant, self._most, *parts, beside=(settled,))
        except RedisGone:
            return await super().add(messages)
        return words(said, MESSAGE_ID)

    async def claim(self, kind: Kind, slots: Slots, hold_s: float) -> list[Claim]:
        """First those that are here only."""
        claims = await super().claim(kind, slots, hold_s)
        if not slots.free:
            return claims
        arguments = (int(hold_s * 1000), MAX_MESSAGE_BYTES, _in_words(slots))
        try:
            said = listed(await self._queue_script(CLAIM, kind, *arguments))
        except (RedisGone, Damaged):
            return claims
        for tenant, host, message_id, until, data in zip(*(said[place::5] for place in range(5)), strict=True):
            message = self._unpack(kind, message_id, data)
            if message is not None:
                slots.take(message)
                claims.append(Claim(message, number(until)))
            else:
                self._tier.note_damage(f"a {kind}")
                await self._forget(kind, tenant, host, message_id)
        return claims

    async def postpone(self, claim: Claim, message: Message, delay_s: float) -> None:
        if self._holds(claim):
            await super().postpone(claim, message, delay_s)
            return
        place = (_word_of_tenant(message.tenant), _word(message.host), message.id)
        try:
            arguments = (*place, claim.until, self._pack(message), int(delay_s * 1000))
            await self._queue_script(POSTPONE, message.kind, *arguments)
        except RedisGone:
            # Its claim runs out, and it is sent again.
            return

    async def remove(self, claim: Claim) -> None:
        if self._holds(claim):
            await super().remove(claim)
        else:
            message = claim.message
            await self._forget(message.kind, _word_of_tenant(message.tenant), _word(message.host), message.id)

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

    async def _forget(self, kind: Kind, tenant: Any, host: Any, message_id: Any) -> None:
        try:
            await self._queue_script(REMOVE, kind, tenant, host, message_id)
        except RedisGone:
            # It is claimed again once its claim has run out.
            return

    async def _queue_script(self, script: str, kind: Kind, *arguments: Any, beside: Sequence[str] = ()) -> Any:
        prefix = self._prefix(kind)
        keys = [*(prefix + name for name in ("messages", "tenants", "waiting", "due")), *beside]
        return await self._script(script, keys, prefix, KEPT_S, *arguments)

    async def _script(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        try:
            return await self._tier.call(lambda redis: redis.eval(script, len(keys), *keys, *arguments), CALL_S)
        except WrongType:
            await self._tier.mend({key: _KINDS[key.rpartition(":")[2]] for key in keys})
            return await self._tier.call(lambda redis: redis.eval(script, len(keys), *keys, *arguments), CALL_S)

    def _prefix(self, kind: Kind) -> str:
        return f"{self._tier.prefix}outbox:{kind}:"

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


def _word(name: str) -> str:
    """Returns what stands for a name in keys: Redis' own scripts can tell as well."""
    return hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()


def _word_of_tenant(tenant: str) -> str:
    return _word(tenant) if tenant else NAMELESS


def _in_words(slots: Slots) -> str:
    said = {
        "free": slots.free,
        "most": slots.most,
        "per_host": slots.most_per_host,
        "tenants": {_word_of_tenant(tenant): taken for tenant, taken in slots.tenants.items()},
        "hosts": {_word(host): taken for host, taken in slots.hosts.items()},
    }
    return json.dumps(said)

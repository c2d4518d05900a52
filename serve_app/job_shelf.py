"""Jobs in Redis: any ingress can tell of them, and one at a time, which holds the lease, works on each.

Under `job:<id>:` there are `spec` and `state`, the hashes `documents` and `files` by entry, the `lease`, and `cancel`
once that was asked for. `jobs:unfinished` (by creation), `jobs:turns` (of each unfinished one), `jobs:finished` (by
their end), `jobs:bytes` and, for each tenant, `jobs:of:<digest>` are what is looked through. All that is read back of a
job was signed (`sealed.py`).
Every method raises RedisGone.
"""

import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from serve_app.job import Job, restored, spec_of, state_of
from serve_app.job_turns import Turn, in_turn
from serve_app.jobs_config import JobsConfig
from serve_app.redis_tier import RedisTier
from serve_app.sealed import BrokenSeal, opened, sealed

log = logging.getLogger(__name__)
T = TypeVar("T")

Heard = Literal["ours", "cancel", "lost", "missing"]

# Nobody's request waits for these calls, and they carry whole pictures.
CALL_S: Final = 5.0

# No job takes longer; what nobody took up by then is forgotten.
UNFINISHED_S: Final = 7 * 24 * 3600

# Whoever works on a job looks every second whether it is to end.
CANCEL_S: Final = 600

_ROUND: Final = re.compile(r"[0-9]{1,12}")
_PARTS: Final = ("spec", "state", "documents", "files", "lease", "cancel")

_LEASE: Final = """
local held = redis.call('get', KEYS[1])
if (held and held ~= ARGV[1]) or not redis.call('zscore', KEYS[2], ARGV[3]) then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_BEAT: Final = """
local held = redis.call('get', KEYS[1])
if held and held ~= ARGV[1] then return 'lost' end
if redis.call('exists', KEYS[2]) == 0 then return 'missing' end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('set', KEYS[3], ARGV[3], 'EX', ARGV[4])
return redis.call('exists', KEYS[4]) == 1 and 'cancel' or 'ours'
"""

# KEYS: lease, state, documents, files, bytes. ARGV: token, state, seconds, id, size, then field, document, files.
_SAVE: Final = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('set', KEYS[2], ARGV[2], 'EX', ARGV[3])
for i = 6, #ARGV, 3 do
  redis.call('hset', KEYS[3], ARGV[i], ARGV[i + 1])
  redis.call('hset', KEYS[4], ARGV[i], ARGV[i + 2])
end
redis.call('expire', KEYS[3], ARGV[3])
redis.call('expire', KEYS[4], ARGV[3])
redis.call('hincrby', KEYS[5], ARGV[4], ARGV[5])
return 1
"""

_RELEASE: Final = "if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end return 1"


class JobShelf:
    """`token` is this process' own: what it leases under that name, no other works on."""

    def __init__(self, tier: RedisTier, config: JobsConfig, key: bytes, token: str) -> None:
        self._tier, self._key, self._token = tier, key, token
        self._keep_s, self._kept, self._max_bytes = config.keep_s, config.kept, config.max_bytes
        self._lease_ms = int(config.lease_s * 1000)

    async def put(self, job: Job) -> None:
        """Everything that is known of the job here. It is there for whoever takes it up."""
        spec, state = self._seal(job.id, "spec", spec_of(job)), self._seal(job.id, "state", state_of(job))
        saved = set(job.documents)

        async def do(redis: Redis) -> None:
            async with redis.pipeline(transaction=True) as pipe:
                pipe.set(self._of(job.id, "spec"), spec, ex=UNFINISHED_S)
                pipe.set(self._of(job.id, "state"), state, ex=UNFINISHED_S)
                for index, document in job.documents.items():
                    pipe.hset(self._of(job.id, "documents"), str(index), self._document(job.id, index, document))
                    if index in job.files:
                        pipe.hset(self._of(job.id, "files"), str(index), self._files(job, index))
                for part in ("documents", "files"):
                    pipe.expire(self._of(job.id, part), UNFINISHED_S)
                pipe.hset(self._key_of("bytes"), job.id, job.size)
                pipe.zadd(self._key_of("unfinished"), {job.id: job.created})
                pipe.hset(self._key_of("turns"), job.id, f"{job.turn} {digest_of(job.tenant)}")
                pipe.zadd(self._tenant(job.tenant), {job.id: job.created})
                pipe.expire(self._tenant(job.tenant), UNFINISHED_S)
                await pipe.execute()

        await self._call(do)
        job.unsaved -= saved

    async def lease(self, job_id: str) -> bool:
        """Whether this process may work on it, for a while; False where another does, or it is finished."""
        keys = (self._of(job_id, "lease"), self._key_of("unfinished"))
        return bool(await self._script(_LEASE, keys, self._token, self._lease_ms, job_id))

    async def beat(self, job: Job) -> Heard:
        """Holds the lease a while longer, and tells how far the job is. `missing` where Redis has forgotten it."""
        keys = tuple(self._of(job.id, part) for part in ("lease", "spec", "state", "cancel"))
        state = self._seal(job.id, "state", state_of(job))
        said = await self._script(_BEAT, keys, self._token, self._lease_ms, state, UNFINISHED_S)
        return cast(Heard, said.decode())

    async def save(self, job: Job) -> bool:
        """What has not been saved of the job. False, and nothing is, where another has the lease."""
        fresh = sorted(job.unsaved)
        keys = (*(self._of(job.id, part) for part in ("lease", "state", "documents", "files")), self._key_of("bytes"))
        entries = [
            part
            for index in fresh
            for part in (str(index), self._document(job.id, index, job.documents[index]), self._files(job, index))
        ]
        size = sum(len(file) for index in fresh for file in job.files[index])
        state = self._seal(job.id, "state", state_of(job))
        if not await self._script(_SAVE, keys, self._token, state, UNFINISHED_S, job.id, size, *entries):
            return False
        job.unsaved.difference_update(fresh)
        return True

    async def finish(self, job: Job) -> None:
        """The job is over: it is kept for a while, and the lease ends. To be saved before."""
        assert job.finished is not None
        finished, now = job.finished, job.finished

        async def do(redis: Redis) -> None:
            async with redis.pipeline(transaction=True) as pipe:
                pipe.zrem(self._key_of("unfinished"), job.id)
                pipe.hdel(self._key_of("turns"), job.id)
                pipe.zadd(self._key_of("finished"), {job.id: finished})
                for part in ("spec", "state", "documents", "files"):
                    pipe.expire(self._of(job.id, part), self._keep_s)
                pipe.delete(self._of(job.id, "lease"), self._of(job.id, "cancel"))
                await pipe.execute()

        await self._call(do)
        await self._trim(now)

    async def release(self, job: Job) -> None:
        """Gives the lease back: the next one need not wait until it has run out."""
        await self._script(_RELEASE, (self._of(job.id, "lease"),), self._token)

    async def load(self, job_id: str) -> Job | None:
        """All that is known of the job but its pictures; None where there is none, or it was tampered with."""

        async def do(redis: Redis) -> list[Any]:
            async with redis.pipeline(transaction=True) as pipe:
                pipe.get(self._of(job_id, "spec"))
                pipe.get(self._of(job_id, "state"))
                pipe.hgetall(self._of(job_id, "documents"))
                self._ask_for_turns(pipe)
                return await pipe.execute()

        spec, state, documents, *unfinished = await self._call(do)
        if spec is None or state is None:
            return None
        try:
            told = {int(index): self._open(job_id, f"document:{int(index)}", doc) for index, doc in documents.items()}
            job = restored(job_id, self._open(job_id, "spec", spec), self._open(job_id, "state", state), told)
        except (BrokenSeal, ValueError) as error:
            log.warning("job %s in Redis cannot be used: %s", job_id, type(error).__name__)
            return None
        turns = _turns(*unfinished)
        job.turn = next((turn.number for turn in turns if turn.id == job_id), 0)
        order = in_turn(turns)
        job.ahead = order.index(job_id) if job.state == "queued" and job_id in order else 0
        return job

    async def files(self, job_id: str, index: int) -> tuple[bytes, ...] | None:
        """The pictures of an entry."""

        async def do(redis: Redis) -> bytes | None:
            found: bytes | None = await cast(Awaitable[Any], redis.hget(self._of(job_id, "files"), str(index)))
            return found

        data = await self._call(do)
        try:
            return None if data is None else opened(f"{job_id}:files:{index}", data, self._key)[1]
        except BrokenSeal:
            log.warning("pictures of job %s in Redis cannot be used", job_id)
            return None

    async def unfinished(self) -> list[Turn]:
        """The jobs that run or wait, in the order of their coming; tenants are told by their digests."""

        async def look(redis: Redis) -> list[Any]:
            async with redis.pipeline(transaction=True) as pipe:
                self._ask_for_turns(pipe)
                return await pipe.execute()

        return _turns(*await self._call(look))

    async def of_tenant(self, tenant: str, most: int) -> list[str]:
        """The ids of the tenant's jobs, the newest first; some of them may be gone."""
        found: Any = await self._call(lambda redis: redis.zrevrange(self._tenant(tenant), 0, most - 1))
        return [job_id.decode() for job_id in found]

    async def ask_to_cancel(self, job_id: str) -> None:
        """Whoever works on it shall end it."""
        await self._call(lambda redis: redis.set(self._of(job_id, "cancel"), b"1", ex=CANCEL_S))

    async def forget(self, *job_ids: str) -> None:
        """Removes all that there is of these jobs."""

        async def do(redis: Redis) -> None:
            async with redis.pipeline(transaction=True) as pipe:
                for job_id in job_ids:
                    pipe.delete(*(self._of(job_id, part) for part in _PARTS))
                pipe.zrem(self._key_of("unfinished"), *job_ids)
                pipe.zrem(self._key_of("finished"), *job_ids)
                pipe.hdel(self._key_of("bytes"), *job_ids)
                pipe.hdel(self._key_of("turns"), *job_ids)
                await pipe.execute()

        await self._call(do)

    async def _trim(self, now: float) -> None:
        """Forgets finished jobs that have been kept long enough, or are too many, or too large, the oldest first."""

        async def look(redis: Redis) -> list[Any]:
            async with redis.pipeline(transaction=True) as pipe:
                pipe.zrange(self._key_of("finished"), 0, -1, withscores=True)
                pipe.hgetall(self._key_of("bytes"))
                return await pipe.execute()

        finished, sizes = await self._call(look)
        held, gone = sum(int(size) for size in sizes.values()), []
        for number, (job_id, ended) in enumerate(finished, start=1):
            if ended < now - self._keep_s or len(finished) - number >= self._kept or held > self._max_bytes:
                held -= int(sizes.get(job_id, 0))
                gone.append(job_id.decode())
        if gone:
            await self.forget(*gone)

    def _ask_for_turns(self, pipe: Pipeline) -> None:
        """Two answers more, which `_turns` takes."""
        pipe.zrange(self._key_of("unfinished"), 0, -1)
        pipe.hgetall(self._key_of("turns"))

    async def _call(self, do: Callable[[Redis], Awaitable[T]]) -> T:
        return await self._tier.call(do, CALL_S)

    async def _script(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        return await self._call(lambda redis: redis.eval(script, len(keys), *keys, *arguments))

    def _seal(self, job_id: str, place: str, header: Any) -> bytes:
        return sealed(f"{job_id}:{place}", header, (), self._key)

    def _open(self, job_id: str, place: str, data: bytes) -> Any:
        return opened(f"{job_id}:{place}", data, self._key)[0]

    def _document(self, job_id: str, index: int, document: Any) -> bytes:
        return self._seal(job_id, f"document:{index}", document)

    def _files(self, job: Job, index: int) -> bytes:
        return sealed(f"{job.id}:files:{index}", None, job.files[index], self._key)

    def _of(self, job_id: str, part: str) -> str:
        return f"{self._tier.prefix}job:{job_id}:{part}"

    def _key_of(self, name: str) -> str:
        return f"{self._tier.prefix}jobs:{name}"

    def _tenant(self, tenant: str) -> str:
        return self._key_of(f"of:{digest_of(tenant)}")


def digest_of(tenant: str) -> str:
    """What stands for a tenant in Redis."""
    return hashlib.blake2b(tenant.encode(), digest_size=16).hexdigest()


def _turns(job_ids: Sequence[bytes], said: Mapping[bytes, bytes]) -> list[Turn]:
    return [_turn(job_id.decode(), said.get(job_id, b"")) for job_id in job_ids]


def _turn(job_id: str, said: bytes) -> Turn:
    """A job whose turn Redis has lost, or somebody has changed into something else, has it at once."""
    number, _, tenant = said.decode(errors="replace").partition(" ")
    return Turn(job_id, tenant, int(number) if _ROUND.fullmatch(number) else 0)

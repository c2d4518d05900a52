"""Reads and writes jobs in Redis: every ingress can read them; the one that holds the lease of a job works on it.

Under `job:<id>:` there are `spec` and `state`, the hashes `documents` and `files` by entry, the `lease`, `cancel` once
that was asked for, what `callbacks/redis_outbox.py` keeps there, and `pictures` (`redis_pictures.py`).
`jobs:unfinished` (by creation), `jobs:turns` (of each: its round and its tenant), `jobs:finished` (by their end),
`jobs:bytes` (of results), `jobs:picture_bytes` (of unfinished ones' pictures) and, for each tenant, `jobs:of:<digest>`
(the newest) are what is looked through. All that is read back of a job was signed (`deployments/signing/signed.py`);
what is not of our form is not used, and what has another type than ours is removed. Every method raises RedisGone.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, TypeVar, cast

from redis.asyncio import Redis

from deployments.signing.signed import BadSignature, sign, verify
from serve_app.config.sections import JobsConfig
from serve_app.jobs.fair_order import QueuedJob, digest_of, fair_order
from serve_app.jobs.job import Job, notes_of, restore, spec_of, state_of
from serve_app.jobs.redis_pictures import SIGNED_BYTES, RedisPictures
from serve_app.jobs.redis_scripts import BEAT, FILES, LEASE, LOAD, QUEUE, RELEASE, SAVE, TURNS
from serve_app.jobs.store import MAX_LISTED
from serve_app.store.redis import RedisGone, RedisTier, WrongType
from serve_app.store.redis_values import JOB_ID, Damaged, Kinds, listed, moment, number, words

T = TypeVar("T")

LeaseReply = Literal["ours", "cancel", "lost", "missing"]
_LEASE_REPLIES: Final[Mapping[Any, LeaseReply]] = {
    b"ours": "ours",
    b"cancel": "cancel",
    b"lost": "lost",
    b"missing": "missing",
}

# Nobody's request waits for these calls, and they carry whole images.
CALL_S: Final = 5.0

# No job takes longer; what nobody took up by then is forgotten.
UNFINISHED_S: Final = 7 * 24 * 3600

# Whoever works on a job looks every second whether it is to end.
CANCEL_S: Final = 600

# Of everything, what is read at once.
MOST_MEMBERS: Final = 10_000
MOST_BYTES: Final = 64 * 1024 * 1024

_KINDS: Final = {
    "spec": "string",
    "state": "string",
    "documents": "hash",
    "files": "hash",
    "lease": "string",
    "cancel": "string",
    "callbacks": "hash",
    "uploads": "hash",
    "pictures": "hash",
    "unfinished": "zset",
    "finished": "zset",
    "turns": "hash",
    "bytes": "hash",
    "picture_bytes": "hash",
}
_PARTS: Final = ("spec", "state", "documents", "files", "lease", "cancel", "callbacks", "uploads", "pictures")


class RedisJobs:
    """`token` is this process' own: what it leases under that name, no other works on."""

    def __init__(self, tier: RedisTier, config: JobsConfig, key: bytes, token: str) -> None:
        self._tier, self._key, self._token = tier, key, token
        self._keep_s, self._kept, self._max_bytes = config.keep_s, config.kept, config.max_bytes
        self._lease_ms = int(config.lease_s * 1000)
        self.pictures = RedisPictures(tier, key, call_s=CALL_S, keep_s=UNFINISHED_S, max_bytes=config.max_bytes)

    async def put(self, job: Job) -> None:
        """Stores all that is known of the job here, for any process to take it up."""
        notes = notes_of(job)
        beside = (json.dumps(notes).encode(),) if notes else ()
        spec = sign(f"{job.id}:spec", spec_of(job), beside, self._key)
        state = self._sign(job.id, "state", state_of(job))
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
                if job.pictures.size:
                    pipe.hset(self._key_of("picture_bytes"), job.id, job.pictures.size)
                pipe.zadd(self._key_of("unfinished"), {job.id: job.created})
                pipe.hset(self._key_of("turns"), job.id, f"{job.round} {digest_of(job.tenant)}")
                pipe.zadd(self._tenant(job.tenant), {job.id: job.created})
                pipe.zremrangebyrank(self._tenant(job.tenant), 0, -MAX_LISTED - 1)
                pipe.expire(self._tenant(job.tenant), UNFINISHED_S)
                await pipe.execute()

        await self._call(do, self._kinds(job.id, tenant=job.tenant))
        job.unsaved -= saved

    async def lease(self, job_id: str) -> bool:
        """Whether this process may work on it, for a while; False where another does, or it is finished."""
        keys = (self._of(job_id, "lease"), self._key_of("unfinished"))
        return bool(await self._script(LEASE, keys, self._token, self._lease_ms, job_id))

    async def renew_lease(self, job: Job) -> LeaseReply:
        """Renews the lease, and publishes how far the job is. `missing` where Redis has forgotten it."""
        keys = tuple(self._of(job.id, part) for part in ("lease", "spec", "state", "cancel"))
        state = self._sign(job.id, "state", state_of(job))
        said = await self._script(BEAT, keys, self._token, self._lease_ms, state, UNFINISHED_S)
        if said not in _LEASE_REPLIES:
            raise RedisGone("it did not answer as it should")
        return _LEASE_REPLIES[said]

    async def save(self, job: Job) -> bool:
        """Saves what is new of the job. Does nothing and returns False where another process has the lease."""
        fresh = sorted(job.unsaved)
        keys = (*(self._of(job.id, part) for part in ("lease", "state", "documents", "files")), self._key_of("bytes"))
        entries = [
            part
            for index in fresh
            for part in (str(index), self._document(job.id, index, job.documents[index]), self._files(job, index))
        ]
        size = sum(len(file) for index in fresh for file in job.files[index])
        state = self._sign(job.id, "state", state_of(job))
        if not await self._script(SAVE, keys, self._token, state, UNFINISHED_S, job.id, size, *entries):
            return False
        job.unsaved.difference_update(fresh)
        return True

    async def finish(self, job: Job) -> None:
        """Keeps a job that is over, and was saved, for a while, and ends the lease."""
        assert job.finished is not None
        finished, now = job.finished, job.finished

        async def do(redis: Redis) -> None:
            async with redis.pipeline(transaction=True) as pipe:
                pipe.zrem(self._key_of("unfinished"), job.id)
                pipe.hdel(self._key_of("picture_bytes"), job.id)
                pipe.zadd(self._key_of("finished"), {job.id: finished})
                for part in ("spec", "state", "documents", "files", "callbacks", "uploads"):
                    pipe.expire(self._of(job.id, part), self._keep_s)
                pipe.delete(self._of(job.id, "lease"), self._of(job.id, "cancel"))
                await pipe.execute()

        await self._call(do, self._kinds(job.id))
        await self._trim(now)

    async def release(self, job_id: str) -> None:
        """Ends the lease: the next process need not wait until it has run out."""
        await self._script(RELEASE, (self._of(job_id, "lease"),), self._token)

    async def load(self, job_id: str) -> Job | None:
        """Returns all that is known of the job but its image files; None where there is none, or it was tampered with.

        Of one that is not over, an entry whose document was tampered with is to be made again. Raises UnknownForm.
        """
        keys = tuple(self._of(job_id, part) for part in ("spec", "state", "documents"))
        said = await self._script(LOAD, keys, MOST_BYTES, MOST_MEMBERS)
        turns = await self.unfinished()
        try:
            spec, state, *rest = listed(said)
            if not spec or not state:
                return None
            documents, broken = self._documents(job_id, rest)
            saved, beside = verify(f"{job_id}:spec", spec, self._key)
            notes = json.loads(beside[0]) if beside else None
            job = restore(job_id, saved, self._verify(job_id, "state", state), documents, notes)
        except (BadSignature, Damaged, ValueError):
            self._tier.note_damage(f"job {job_id}")
            return None
        if broken:
            self._tier.note_damage(f"{broken} entries of job {job_id}")
            if job.over:
                return None
        job.round = next((turn.round for turn in turns if turn.id == job_id), 0)
        order = fair_order(turns)
        job.ahead = order.index(job_id) if job.state == "queued" and job_id in order else 0
        return job

    def _documents(self, job_id: str, said: Sequence[Any]) -> tuple[dict[int, Any], int]:
        """Returns the documents by entries, and how many are not ours."""
        documents: dict[int, Any] = {}
        for entry, document in zip(said[::2], said[1::2], strict=True):
            index = number(entry, -1)
            with suppress(BadSignature):
                documents[index] = self._verify(job_id, f"document:{index}", document)
        return documents, len(said) // 2 - len(documents)

    async def files(self, job_id: str, index: int) -> tuple[bytes, ...] | None:
        """Returns the image files of an entry."""
        data = await self._script(FILES, (self._of(job_id, "files"),), str(index), self._max_bytes + SIGNED_BYTES)
        try:
            return verify(f"{job_id}:files:{index}", data, self._key)[1] if data else None
        except BadSignature:
            self._tier.note_damage(f"a picture of job {job_id}")
            return None

    async def unfinished(self) -> list[QueuedJob]:
        """Returns the jobs that run or wait, in the order of their creation; their tenants are digests."""
        keys = tuple(self._key_of(name) for name in ("unfinished", "turns", "picture_bytes"))
        said = await self._script(QUEUE, keys, MOST_MEMBERS)
        try:
            rows = zip(listed(said)[::3], said[1::3], said[2::3], strict=True)
            return [_parse_queued(job_id.decode(), *more) for job_id, *more in rows if words([job_id], JOB_ID)]
        except (Damaged, ValueError):
            raise RedisGone("it did not answer as it should") from None

    async def of_tenant(self, tenant: str, most: int) -> list[str]:
        """Returns the ids of the tenant's jobs, the newest first; some of them may be gone."""
        key = self._tenant(tenant)
        found: Any = await self._call(lambda redis: redis.zrevrange(key, 0, most - 1), {key: "zset"})
        return words(found, JOB_ID)

    async def request_cancel(self, job_id: str) -> None:
        """Asks whichever process works on it to end it."""
        await self._call(lambda redis: redis.set(self._of(job_id, "cancel"), b"1", ex=CANCEL_S), {})

    async def forget(self, *job_ids: str) -> None:
        """Removes these jobs."""
        said = await self._script(TURNS, (self._key_of("turns"),), *job_ids)
        jobs = map(_parse_queued, job_ids, said if isinstance(said, list) else ())
        listed_in = {job.id: self._key_of(f"of:{job.tenant}") for job in jobs if JOB_ID.fullmatch(job.tenant)}

        async def do(redis: Redis) -> None:
            async with redis.pipeline(transaction=True) as pipe:
                for job_id in job_ids:
                    pipe.delete(*(self._of(job_id, part) for part in _PARTS))
                pipe.zrem(self._key_of("unfinished"), *job_ids)
                pipe.zrem(self._key_of("finished"), *job_ids)
                for name in ("bytes", "picture_bytes", "turns"):
                    pipe.hdel(self._key_of(name), *job_ids)
                for job_id, key in listed_in.items():
                    pipe.zrem(key, job_id)
                await pipe.execute()

        await self._call(do, {**self._kinds(*job_ids), **dict.fromkeys(listed_in.values(), "zset")})

    async def _trim(self, now: float) -> None:
        """Forgets finished jobs that have been kept long enough, or are too many, or too large, the oldest first."""

        async def look(redis: Redis) -> tuple[list[tuple[bytes, float]], list[bytes], list[Any]]:
            async with redis.pipeline(transaction=True) as pipe:
                pipe.zrange(self._key_of("finished"), 0, MOST_MEMBERS - 1, withscores=True)
                pipe.zrange(self._key_of("unfinished"), 0, MOST_MEMBERS - 1)
                ended, others = await pipe.execute()
            ids = [job_id for job_id, _ in ended] + others
            return ended, others, await cast(Awaitable[Any], redis.hmget(self._key_of("bytes"), ids)) if ids else []

        ended, _, sizes = await self._call(look, self._kinds())
        held, gone = sum(number(size) for size in sizes), list[str]()
        finished = list(zip(ended, sizes, strict=False))
        for place, ((job_id, at), size) in enumerate(finished, start=1):
            if moment(at) < now - self._keep_s or len(finished) - place >= self._kept or held > self._max_bytes:
                held -= number(size)
                gone.append(job_id.decode("ascii", errors="replace"))
        if ours := [job_id for job_id in gone if JOB_ID.fullmatch(job_id)]:
            await self.forget(*ours)

    async def _call(self, do: Callable[[Redis], Awaitable[T]], kinds: Kinds) -> T:
        """Calls `do`; once more where something of another type had taken the place of one of `kinds`."""
        try:
            return await self._tier.call(do, CALL_S)
        except WrongType:
            await self._tier.mend(kinds)
            return await self._tier.call(do, CALL_S)

    async def _script(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        kinds = {key: _kind_of(key) for key in keys}
        return await self._call(lambda redis: redis.eval(script, len(keys), *keys, *arguments), kinds)

    def _kinds(self, *job_ids: str, tenant: str | None = None) -> Kinds:
        """Returns the types of all keys of these jobs."""
        keys = [self._of(job_id, part) for job_id in job_ids for part in _PARTS]
        keys += [self._key_of(name) for name in ("unfinished", "finished", "turns", "bytes", "picture_bytes")]
        return {key: _kind_of(key) for key in keys} | ({} if tenant is None else {self._tenant(tenant): "zset"})

    def _sign(self, job_id: str, place: str, header: Any) -> bytes:
        return sign(f"{job_id}:{place}", header, (), self._key)

    def _verify(self, job_id: str, place: str, data: bytes) -> Any:
        return verify(f"{job_id}:{place}", data, self._key)[0]

    def _document(self, job_id: str, index: int, document: Any) -> bytes:
        return self._sign(job_id, f"document:{index}", document)

    def _files(self, job: Job, index: int) -> bytes:
        return sign(f"{job.id}:files:{index}", None, job.files[index], self._key)

    def _of(self, job_id: str, part: str) -> str:
        return f"{self._tier.prefix}job:{job_id}:{part}"

    def _key_of(self, name: str) -> str:
        return f"{self._tier.prefix}jobs:{name}"

    def _tenant(self, tenant: str) -> str:
        return self._key_of(f"of:{digest_of(tenant)}")


def _kind_of(key: str) -> str:
    """Returns the type in Redis of what we keep under a key."""
    return _KINDS[key.rpartition(":")[2]]


def _parse_queued(job_id: str, said: Any, picture_bytes: Any = None) -> QueuedJob:
    """Parses a job's round; one that Redis has lost, or that was tampered with, is the first."""
    turn, _, tenant = (said if isinstance(said, bytes) else b"").partition(b" ")
    return QueuedJob(job_id, tenant.decode("ascii", errors="replace"), number(turn), number(picture_bytes))

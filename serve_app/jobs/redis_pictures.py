"""Keeps the pictures of unfinished jobs in Redis: signed, under `job:<id>:pictures`, each once, by its digest.

Every method raises RedisGone.
"""

import asyncio
from collections.abc import Awaitable
from typing import Final, cast

from redis.asyncio import Redis

from deployments.signing.signed import BadSignature, sign, verify
from serve_app.jobs.job import Job
from serve_app.jobs.pictures import JobPictures
from serve_app.jobs.redis_scripts import FILES
from serve_app.store.redis import RedisTier, WrongType

SIGNED_BYTES: Final = 1024
"""What a signature, and the sizes of a few files, add to these at most."""


class RedisPictures:
    """`call_s` and `keep_s` are the seconds that a call may take, and that pictures are kept at most."""

    def __init__(self, tier: RedisTier, key: bytes, *, call_s: float, keep_s: int, max_bytes: int) -> None:
        self._tier, self._key, self._call_s, self._keep_s, self._max_bytes = tier, key, call_s, keep_s, max_bytes

    async def put(self, job: Job) -> None:
        """Stores the pictures of a job, before the job itself."""
        if not job.pictures.files:
            return
        key = self._of(job.id)
        # In a thread: they may be megabytes.
        signed = await asyncio.to_thread(self._sign_all, job)

        async def do(redis: Redis) -> None:
            async with redis.pipeline(transaction=True) as pipe:
                pipe.delete(key)
                for digest, file in signed.items():
                    pipe.hset(key, digest, file)
                pipe.expire(key, self._keep_s)
                await pipe.execute()

        await self._tier.call(do, self._call_s)

    async def read(self, job: Job) -> JobPictures | None:
        """Returns the job's pictures with their files; None where one is gone, or was tampered with."""
        key, files = self._of(job.id), {}
        try:
            for digest in job.pictures.layout.digests:
                data = await self._read_file(key, digest)
                _, (files[digest],) = await asyncio.to_thread(verify, _place(job.id, digest), data, self._key)
        except (BadSignature, TypeError, ValueError, WrongType):
            self._tier.note_damage(f"the pictures of job {job.id}")
            return None
        return JobPictures(job.pictures.layout, files)

    async def drop(self, job: Job) -> None:
        """Removes the pictures of a job that is over."""
        if job.pictures.layout.size:
            await self._tier.call(lambda redis: redis.delete(self._of(job.id)), self._call_s)

    def _sign_all(self, job: Job) -> dict[str, bytes]:
        files = job.pictures.files.items()
        return {digest: sign(_place(job.id, digest), None, (file,), self._key) for digest, file in files}

    async def _read_file(self, key: str, digest: str) -> bytes:
        most = str(self._max_bytes + SIGNED_BYTES)
        return await self._tier.call(
            lambda redis: cast(Awaitable[bytes], redis.eval(FILES, 1, key, digest, most)), self._call_s
        )

    def _of(self, job_id: str) -> str:
        return f"{self._tier.prefix}job:{job_id}:pictures"


def _place(job_id: str, digest: str) -> str:
    return f"{job_id}:pictures:{digest}"

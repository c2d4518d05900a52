"""Keeps answers under their callers' idempotency keys, so that a request that is sent twice runs once.

As in draft-ietf-httpapi-idempotency-key-header-07: the same key with the same request gets the same answer again, or a
conflict while that is being made; the same key with another request is the caller's mistake.
"""

import time
from collections import Counter
from collections.abc import Callable

from cachetools import TTLCache

from serve_app.config.sections import IdempotencyConfig
from serve_app.gateway.idempotency_store import HeldElsewhere, IdempotentRequest, RedisIdempotencyStore, StoredResponse

Clock = Callable[[], float]


class InProgress(Exception):
    """The same request is running."""


class Reused(Exception):
    """The key belongs to another request."""


class Idempotency:
    """Used on one event loop. Counts `idempotent_replays` in `counts`, and `idempotency_degraded`: calls that Redis did
    not answer, so that only this process remembers.
    """

    def __init__(
        self,
        config: IdempotencyConfig,
        shared: RedisIdempotencyStore | None,
        counts: Counter[str],
        clock: Clock = time.monotonic,
    ) -> None:
        self.shared = shared
        self.counts = counts
        self.kept: TTLCache[str, tuple[bytes, StoredResponse]] = TTLCache(
            config.memory_bytes, config.ttl_s, clock, getsizeof=lambda kept: kept[1].size
        )
        self.running: dict[str, bytes] = {}

    def keep(self, name: str, fingerprint: bytes, response: StoredResponse) -> None:
        """Remembers a response in this process, unless it is larger than all of them may be together."""
        if response.size <= self.kept.maxsize:
            self.kept[name] = (fingerprint, response)

    async def begin(self, request: IdempotentRequest) -> "StoredResponse | Lease":
        """Returns the stored answer to `request`, or else a lease on the work, which the caller must release.

        Raises InProgress, Reused.
        """
        if request.name in self.running:
            raise InProgress if self.running[request.name] == request.fingerprint else Reused
        stored = self.kept.get(request.name)
        if stored is not None:
            return self._replay(request, *stored)
        self.running[request.name] = request.fingerprint
        lease = Lease(self, request)
        try:
            found = await lease.take_in_redis()
            if isinstance(found, HeldElsewhere):
                raise InProgress if found.fingerprint == request.fingerprint else Reused
            if found is not None:
                self.keep(request.name, *found)
                return self._replay(request, *found)
        except BaseException:
            await lease.release()
            raise
        return lease

    def _replay(self, request: IdempotentRequest, fingerprint: bytes, answer: StoredResponse) -> StoredResponse:
        self.running.pop(request.name, None)
        if fingerprint != request.fingerprint:
            raise Reused
        self.counts["idempotent_replays"] += 1
        return answer


class Lease:
    """One request's right to answer. `release` gives it back, with or without an answer to keep."""

    def __init__(self, owner: Idempotency, request: IdempotentRequest) -> None:
        self._owner, self._request = owner, request
        self._lock = None if owner.shared is None else owner.shared.lock(request)

    async def take_in_redis(self) -> tuple[bytes, StoredResponse] | HeldElsewhere | None:
        """Takes the lease in Redis as well, or returns what is there instead."""
        if self._lock is None:
            return None
        found = await self._lock.take()
        self._count_losses()
        return found

    async def release(self, answer: StoredResponse | None = None) -> None:
        """Lets the next request run, or gives it `answer`."""
        if answer is not None:
            self._owner.keep(self._request.name, self._request.fingerprint, answer)
        self._owner.running.pop(self._request.name, None)
        if self._lock is not None:
            await self._lock.release(answer)
            self._count_losses()

    def _count_losses(self) -> None:
        assert self._lock is not None
        self._owner.counts["idempotency_degraded"] += self._lock.lost
        self._lock.lost = 0

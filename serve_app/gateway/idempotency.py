"""Answers kept under the keys that their callers gave them, so that a request sent twice is done once.

As draft-ietf-httpapi-idempotency-key-header-07 has it: the same key and the same request get the same answer again;
while it is being made they are in conflict; the same key with another request is a mistake of the caller's.
"""

import time
from collections import Counter
from collections.abc import Callable

from cachetools import TTLCache

from serve_app.config.sections import IdempotencyConfig
from serve_app.gateway.idempotency_store import HeldElsewhere, IdempotentRequest, RedisIdempotencyStore, StoredResponse

Clock = Callable[[], float]


class InProgress(Exception):
    """The same request is being worked on."""


class Reused(Exception):
    """The key belongs to another request."""


class Idempotency:
    """Used on one event loop. `counts` gets `idempotent_replays` and `idempotency_degraded`: Redis was to be asked, and
    was gone, so that only this process remembers."""

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

    async def begin(self, work: IdempotentRequest) -> "StoredResponse | Lease":
        """The answer to `work`, if there is one, or else the caller's turn to find it, which must be ended.

        Raises InProgress, Reused.
        """
        if work.name in self.running:
            raise InProgress if self.running[work.name] == work.fingerprint else Reused
        known = self.kept.get(work.name)
        if known is not None:
            return self._replayed(work, *known)
        self.running[work.name] = work.fingerprint
        turn = Lease(self, work)
        try:
            theirs = await turn.share()
            if isinstance(theirs, HeldElsewhere):
                raise InProgress if theirs.fingerprint == work.fingerprint else Reused
            if theirs is not None:
                self.keep(work.name, *theirs)
                return self._replayed(work, *theirs)
        except BaseException:
            await turn.end()
            raise
        return turn

    def _replayed(self, work: IdempotentRequest, fingerprint: bytes, answer: StoredResponse) -> StoredResponse:
        self.running.pop(work.name, None)
        if fingerprint != work.fingerprint:
            raise Reused
        self.counts["idempotent_replays"] += 1
        return answer


class Lease:
    """The right to answer, held by one request. `end` gives it back, with an answer to keep or without."""

    def __init__(self, owner: Idempotency, work: IdempotentRequest) -> None:
        self._owner, self._work = owner, work
        self._lock = None if owner.shared is None else owner.shared.lock(work)

    async def share(self) -> tuple[bytes, StoredResponse] | HeldElsewhere | None:
        """Takes the turn in Redis as well; or what is found there in its place."""
        if self._lock is None:
            return None
        found = await self._lock.take()
        self._count()
        return found

    async def end(self, answer: StoredResponse | None = None) -> None:
        """The next one may begin, or gets `answer`."""
        if answer is not None:
            self._owner.keep(self._work.name, self._work.fingerprint, answer)
        self._owner.running.pop(self._work.name, None)
        if self._lock is not None:
            await self._lock.leave(answer)
            self._count()

    def _count(self) -> None:
        assert self._lock is not None
        self._owner.counts["idempotency_degraded"] += self._lock.lost
        self._lock.lost = 0

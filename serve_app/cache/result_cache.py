"""Serves images made before, and joins requests for images already being made.

Between the service and its backend: this process' memory, then Redis where there is one, then the engines. The rules
are in docs/caching.md. Only complete results are kept; a failure never is, and black images fail already in the engine.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final

from deployments.engine.protocol.events import Event, Finished, ImageDone, Timings
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.metrics import CACHE_BYTES, CACHE_ERRORS, CACHE_REQUESTS, CACHE_SAVED, Sample
from serve_app.backends.layer import Layer
from serve_app.backends.protocol import Backend
from serve_app.cache.coalescing import RequestCoalescer
from serve_app.cache.entry import CacheEntry
from serve_app.cache.memory_tier import MemoryTier
from serve_app.cache.redis_tier import SharedTier
from serve_app.config.sections import CacheConfig
from serve_app.generation.fingerprint import Fingerprint, fingerprint_of
from serve_app.store.redis import RedisTier

log = logging.getLogger(__name__)

Generate = Callable[[Request], AsyncGenerator[Event, None]]
Clock = Callable[[], float]

NO_CACHE: Final = CacheConfig(enabled=False)


class ResultCache:
    """Finds, joins and keeps results. Used on one event loop; `figures` and `samples` may be called by any thread.

    `setting` is, by model, what else the images of this server's engines depend on (device, dtype, annotators), as
    plain data.
    """

    def __init__(
        self,
        config: CacheConfig = NO_CACHE,
        redis: RedisTier | None = None,
        setting: Mapping[str, Any] | None = None,
        clock: Clock = time.time,
    ) -> None:
        self._enabled = config.enabled
        self._ttl_s = config.ttl_s
        self._setting = dict(setting or {})
        self._clock = clock
        self._memory = MemoryTier(config.memory_bytes if config.enabled else 0)
        self._shared: SharedTier | None = None
        if redis is not None and config.enabled:
            self._shared = SharedTier(redis, redis.signing_key("results"), config.ttl_s, self._forget)
        self._coalescer = RequestCoalescer()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._bad = 0
        self._saved_s = 0.0
        # How often it has been emptied: what was begun before must not be kept after.
        self._epoch = 0

    def __len__(self) -> int:
        """Results in this process' memory."""
        return len(self._memory)

    async def generate(self, request: Request, spec: ModelSpec, make: Generate) -> AsyncGenerator[Event, None]:
        """Yields the request's events, of `make` where they are not here. Closing this cancels the request."""
        if not self._enabled or request.params.cache == "off":
            async with aclosing(make(request)) as events:
                async for event in events:
                    yield event
            return
        fingerprint = await self._fingerprint(request, spec)
        any_seed = request.seed_drawn and request.params.cache in {"reuse", "similar"}
        asks = any_seed or not (request.seed_drawn or request.params.cache == "refresh")
        # Who does not find it here hears of an emptied cache as Redis is asked for it: one wait for Redis at most.
        if self._shared is not None and (not asks or self._in_memory(fingerprint, any_seed)):
            await self._shared.keep_up()
        if asks and (entry := self._find_in_memory(fingerprint, any_seed)):
            for event in entry.events(request.id):
                yield event
            return

        def work() -> AsyncGenerator[Event, None]:
            return self._fetch_or_make(request, fingerprint, make, asks, any_seed)

        shared = _sharing_key(request, fingerprint) if asks and not any_seed else None
        async with aclosing(self._coalescer.follow(request.id, shared, work)) as events:
            async for event in events:
                yield event

    async def empty(self) -> int:
        """Forgets all results, also in Redis and, within about a second, in the other processes that share it.

        Returns the number of those that this process had. Raises RedisGone where Redis does not answer: then only this
        process' memory is empty.
        """
        entries = len(self._memory)
        self._forget()
        if self._shared is not None:
            await self._shared.empty()
        return entries

    async def close(self) -> None:
        """Waits for results on their way to Redis."""
        if self._shared is not None:
            await self._shared.close()

    def figures(self) -> dict[str, Any]:
        """The guide's two figures, and `cache` with all the rest (docs/statistics.md)."""
        counts = dict(self._counts)
        hits = sum(number for (_, result), number in counts.items() if result == "hit")
        asked = sum(number for (tier, _), number in counts.items() if tier == "memory")
        return {
            "cache_hit_rate": hits / asked if asked else 0.0,
            "total_cache_entries": len(self._memory),
            "cache": {
                **{tier: _tier(counts, tier) for tier in ("memory", "redis")},
                "coalesced": self._coalescer.joined,
                "bytes": self._memory.bytes,
                "evictions": self._memory.evictions,
                "saved_seconds": round(self._saved_s, 3),
                **self._errors(),
            },
        }

    def samples(self) -> Iterator[Sample]:
        """The same for Prometheus."""
        for labels, number in list(self._counts.items()):
            yield Sample(CACHE_REQUESTS, labels, number)
        yield Sample(CACHE_REQUESTS, ("inflight", "coalesced"), self._coalescer.joined)
        for kind, number in self._errors().items():
            yield Sample(CACHE_ERRORS, (kind,), number)
        yield Sample(CACHE_SAVED, (), self._saved_s)
        yield Sample(CACHE_BYTES, (), self._memory.bytes)

    async def _fingerprint(self, request: Request, spec: ModelSpec) -> Fingerprint:
        asked = (request, spec, self._setting.get(spec.name))
        # Megabytes of images to hash, and everybody else would wait.
        return fingerprint_of(*asked) if request.uploads is None else await asyncio.to_thread(fingerprint_of, *asked)

    def _find_in_memory(self, fingerprint: Fingerprint, any_seed: bool) -> CacheEntry | None:
        """Returns the result that this process has."""
        found = self._in_memory(fingerprint, any_seed)
        if found is not None and not self._matches(found, fingerprint, any_seed):
            self._memory.drop(found.fingerprint)
            found = None
        return self._count("memory", found)

    def _in_memory(self, fingerprint: Fingerprint, any_seed: bool) -> CacheEntry | None:
        return self._memory.latest(fingerprint.work_key) if any_seed else self._memory.get(fingerprint.key)

    async def _find_in_redis(self, fingerprint: Fingerprint, any_seed: bool) -> CacheEntry | None:
        """Returns the result that Redis has, and keeps it in this process."""
        if self._shared is None:
            return None
        found = await (self._shared.latest(fingerprint) if any_seed else self._shared.get(fingerprint))
        if found is not None and not self._matches(found, fingerprint, any_seed):
            found = None
        if found is not None:
            self._memory.put(found)
        return self._count("redis", found)

    def _matches(self, entry: CacheEntry, fingerprint: Fingerprint, any_seed: bool) -> bool:
        """Whether the entry is for the very same work, and not too old."""
        same = entry.fingerprint.work == fingerprint.work and (any_seed or entry.fingerprint.seed == fingerprint.seed)
        if not same:
            self._bad += 1
            log.warning("a cached result is not used: it is another request's")
        return same and self._clock() - entry.made < self._ttl_s

    def _count(self, tier: str, entry: CacheEntry | None) -> CacheEntry | None:
        self._counts[tier, "miss" if entry is None else "hit"] += 1
        self._saved_s += 0.0 if entry is None else entry.seconds
        return entry

    async def _fetch_or_make(
        self, request: Request, fingerprint: Fingerprint, make: Generate, asks: bool, any_seed: bool
    ) -> AsyncGenerator[Event, None]:
        """Yields the request's events, from Redis or from the engines; what these make is kept."""
        if asks and (entry := await self._find_in_redis(fingerprint, any_seed)):
            for event in entry.events(request.id):
                yield event
            return
        images, epoch = list[ImageDone](), self._epoch
        async with aclosing(make(request)) as events:
            async for event in events:
                # What has begun from another image, or was made by other weights, is not what its parameters say.
                if isinstance(event, ImageDone) and event.continued is None and event.is_current:
                    images.append(event)
                elif isinstance(event, Finished) and len(images) == request.params.num_images and epoch == self._epoch:
                    self._keep(fingerprint, images, event.timings)
                yield event

    def _keep(self, fingerprint: Fingerprint, images: list[ImageDone], took: Timings) -> None:
        seconds = (took.encode_ms + took.denoise_ms + took.decode_ms) / 1000
        ordered = tuple(sorted(images, key=lambda image: image.index))
        entry = CacheEntry(fingerprint, ordered, seconds, self._clock())
        self._memory.put(entry)
        if self._shared is not None:
            self._shared.put(entry)

    def _forget(self) -> None:
        self._memory.clear()
        self._epoch += 1

    def _errors(self) -> dict[str, int]:
        """Counts what went wrong, by its kind."""
        shared = self._shared
        counts = {} if shared is None else shared.counts
        return {
            "bad_entries": self._bad + counts.get("bad_entry", 0),
            "writes_dropped": counts.get("write_dropped", 0),
            "too_large": counts.get("too_large", 0),
            "redis_failures": 0 if shared is None else shared.redis.failures,
            "redis_skipped": 0 if shared is None else shared.redis.skipped,
        }


def _sharing_key(request: Request, fingerprint: Fingerprint) -> Hashable | None:
    """Returns the key under which others may join the work; None where they may not.

    A request that shows more on the way, or is more urgent, is work of its own, though its images are the same. And one
    with a deadline is dropped at it, which is not what those who came later have asked for.
    """
    params = request.params
    return None if params.deadline_ms is not None else (fingerprint, request.previews, params.priority)


def _tier(counts: Mapping[tuple[str, str], int], tier: str) -> dict[str, int]:
    return {"hits": counts.get((tier, "hit"), 0), "misses": counts.get((tier, "miss"), 0)}


class CachingBackend(Layer):
    """Serves from `cache` what `inner` has made before, and joins requests for what it is making."""

    def __init__(self, inner: Backend, cache: ResultCache) -> None:
        super().__init__(inner)
        self._cache = cache

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        spec = next(spec for spec in self.models if spec.name == request.model)
        return self._cache.generate(request, spec, self.inner.generate)

    async def close(self) -> None:
        await self.inner.close()
        await self._cache.close()

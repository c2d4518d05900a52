"""Repeats requests whose replica was lost on another one, and refuses those that crash replicas for a while.

A request is a pure function of its parameters and its seed, so another replica makes the same images. But one that
kills every replica that runs it would take its neighbours down with it each time. Hence three attempts, which differ:

1. beside all others;
2. at once after the first loss, beside all others;
3. alone among those that have lost two replicas: one at a time per deployment.

Suppose one request is the cause. Its first two attempts lose the first two replicas, so whoever was beside it both
times now waits for its turn alone, as it does; and only its own turn can end in a third loss. So no innocent request
ever uses up its attempts, and the loss of a third attempt convicts: the request fails, and whoever asks for the same
work is refused for ten minutes. Several ingress processes share the verdicts through Redis, where there is one.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from deployments.engine.protocol.errors import EngineLost, EngineStopped, GenerationFailed, Quarantined
from deployments.engine.protocol.events import Accepted, Event, Failed, ImageDone, ImageFailed, Preview
from deployments.engine.protocol.request import Request
from serve_app.backends.layer import Layer
from serve_app.backends.protocol import Backend
from serve_app.backends.redis_quarantine import RedisQuarantine
from serve_app.generation.fingerprint import canonical_json, hash_of, work_of

log = logging.getLogger(__name__)

QUARANTINE_SECONDS = 600.0
QUARANTINE_SIZE = 1024

Clock = Callable[[], float]


class ReplayingBackend(Layer):
    """Repeats the requests of one deployment. Used on one event loop.

    Of `inner`, a `Failed` with `EngineStopped` says that the replica is gone, `EngineLost` that it had begun. `shared`
    is the quarantine of all processes. `counts` has `replays`, `quarantined` (requests convicted) and
    `quarantine_refusals`.
    """

    def __init__(self, inner: Backend, shared: RedisQuarantine | None = None, clock: Clock = time.monotonic) -> None:
        super().__init__(inner)
        self._counts: Counter[str] = Counter()
        self._clock = clock
        self._quarantine = Quarantine(clock, shared)
        self._isolation = asyncio.Lock()

    @property
    def counts(self) -> Mapping[str, int]:
        return self._counts

    async def close(self) -> None:
        """Waits for verdicts on their way to Redis as well."""
        await self.inner.close()
        if self._quarantine.shared is not None:
            await self._quarantine.shared.close()

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """Yields the request's events, from as many attempts as it takes; none comes twice. Closing it ends all."""
        delivered = DeliveredEvents()
        arrived = self._clock()
        isolations: list[AbstractAsyncContextManager[None]] = [nullcontext(), nullcontext(), self._isolation]
        for number, isolation in enumerate(isolations):
            async with isolation:
                # Before each attempt: a request for the same work may have been convicted while this one waited.
                if await self._quarantine.holds(request):
                    self._counts["quarantine_refusals"] += 1
                    yield Failed(request.id, Quarantined("this request has just taken several engines down; change it"))
                    return
                asked = self._next_attempt(request, number, arrived) if number else request
                async with aclosing(self.inner.generate(asked)) as events:
                    async for event in events:
                        if loss := loss_of(event):
                            break
                        if delivered.is_news(event):
                            yield replace(event, request_id=request.id)
                    else:
                        return
                # Before the next one runs alone: it may be for the same work.
                if isolation is self._isolation:
                    yield Failed(request.id, await self._convict(request, loss))

    def _next_attempt(self, request: Request, number: int, arrived: float) -> Request:
        """Returns the request with what is left of its deadline, under an id of its own: the abort of one attempt must
        not end the next."""
        log.warning("request %s: its replica was lost; it is repeated (%d)", request.id, number)
        self._counts["replays"] += 1
        params = request.params
        if params.deadline_ms is not None:
            left = params.deadline_ms - round((self._clock() - arrived) * 1000)
            params = params.model_copy(update={"deadline_ms": max(1, left)})
        return replace(request, id=f"{request.id}.replay-{number}", params=params)

    async def _convict(self, request: Request, loss: EngineStopped) -> EngineStopped | GenerationFailed:
        """Returns the error for a request whose last attempt, too, has lost its replica."""
        if not isinstance(loss, EngineLost):
            return loss
        log.error("request %s: every replica that ran it was lost; the like of it is refused for a while", request.id)
        self._counts["quarantined"] += 1
        await self._quarantine.add(request)
        return GenerationFailed("every engine that worked on this request was lost")


class Quarantine:
    """Holds the fingerprints of convicted requests: the last `QUARANTINE_SIZE`, for `QUARANTINE_SECONDS`."""

    def __init__(self, clock: Clock, shared: RedisQuarantine | None = None) -> None:
        self.shared = shared
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()

    async def add(self, request: Request) -> None:
        """Refuses requests for the same work as `request` from now on."""
        convicted = await asyncio.to_thread(fingerprint, request)
        self._until[convicted] = self._clock() + QUARANTINE_SECONDS
        self._until.move_to_end(convicted)
        if len(self._until) > QUARANTINE_SIZE:
            self._until.popitem(last=False)
        if self.shared is not None:
            self.shared.add(convicted, QUARANTINE_SECONDS)

    async def holds(self, request: Request) -> bool:
        """Whether a request for the same work was convicted a short while ago."""
        while self._until and next(iter(self._until.values())) <= self._clock():
            self._until.popitem(last=False)
        # Nearly always empty; and hashing a form's images takes a while, so it happens on a thread.
        if self._until and await asyncio.to_thread(fingerprint, request) in self._until:
            return True
        return self.shared is not None and await self.shared.seconds_left(partial(fingerprint, request)) > 0


@dataclass(slots=True)
class DeliveredEvents:
    """Remembers what the caller has seen of a request, so that a replay does not send it twice."""

    accepted: bool = False
    images: set[int] = field(default_factory=set)

    def is_news(self, event: Event) -> bool:
        """Whether `event` tells the caller anything; remembers that it did."""
        match event:
            case Accepted():
                news, self.accepted = not self.accepted, True
                return news
            case ImageDone() | ImageFailed():
                news = event.index not in self.images
                self.images.add(event.index)
                return news
            case Preview():
                return event.index not in self.images
            case _:
                return True


def loss_of(event: Event) -> EngineStopped | None:
    """Returns the error of an attempt that lost its engine and ends with `event`; None where it did not."""
    return event.error if isinstance(event, Failed) and isinstance(event.error, EngineStopped) else None


def fingerprint(request: Request) -> str:
    """Hashes what the request makes an engine do: equal for equal work, whoever asks and under whichever id."""
    return hash_of(canonical_json(work_of(request) | {"previews": request.previews}).encode())

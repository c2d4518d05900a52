"""The backend whose engines are Ray Serve replicas, asked through their deployments' handles."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray.exceptions import ActorUnavailableError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.engine.protocol.errors import EngineError, EngineLost, EngineStopped, Overloaded
from deployments.engine.protocol.events import Event, Failed, Finished
from deployments.engine.protocol.report import EngineReport
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from serve_app.backends.load_shedding import LoadShedder
from serve_app.backends.protocol import BackendReport
from serve_app.backends.redis_quarantine import RedisQuarantine
from serve_app.backends.replays import QUARANTINE_SECONDS, Replays
from serve_app.store.redis import RedisTier

log = logging.getLogger(__name__)

REPORT_TIMEOUT_S = 2.0
REPORT_AGE_S = 1.0

# The way to the replica is gone for now, which is no sign that it died of the request.
OUT_OF_REACH = (ActorUnavailableError, ReplicaUnavailableError)
LOST = (RayActorError, WorkerCrashedError)


@dataclass(frozen=True, slots=True)
class Route:
    """A model deployment: its handle, the models behind it, what has become of its replicas' requests, and whether it
    has just been full."""

    handle: DeploymentHandle
    specs: tuple[ModelSpec, ...]
    replays: Replays = field(default_factory=Replays)
    shedder: LoadShedder = field(default_factory=LoadShedder)


class RayBackend:
    """A `Backend` whose engines are Ray Serve replicas."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._all = tuple(routes)
        self._routes = {spec.name: route for route in routes for spec in route.specs}
        self._models = tuple(spec for route in routes for spec in route.specs)
        # asyncio keeps weak references only: without these a cancellation could be collected before it was sent.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._shared: RedisQuarantine | None = None
        self._report: asyncio.Task[BackendReport] | None = None
        self._report_made = -REPORT_AGE_S

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The models of all deployments, in the configuration's order."""
        return self._models

    @property
    def counts(self) -> Mapping[str, int]:
        """What has become of requests whose replicas were lost."""
        return sum((route.replays.counts for route in self._all), Counter[str]())

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """The request's events. When its replica is lost, another repeats it (see `replays.py`)."""
        route = self._routes[request.model]
        try:
            route.shedder.check(request.tenant)
        except Overloaded as error:
            yield Failed(request.id, error)
            return
        async with aclosing(route.replays.run(request, partial(self._attempt, route.handle))) as events:
            async for event in events:
                route.shedder.record(request.tenant, event)
                yield event

    async def cancel(self, name: str, tenant: str) -> bool:
        """Ends the tenant's requests of this name on every replica, whichever ingress they came through."""
        answers = await asyncio.gather(*(_cancelled_by(route.handle, name, tenant) for route in self._all))
        return any(answers)

    async def report(self) -> BackendReport:
        """The engines' reports, at most a second old, and never slower than `REPORT_TIMEOUT_S`."""
        if self._report is None or (self._report.done() and time.monotonic() - self._report_made > REPORT_AGE_S):
            self._report_made = time.monotonic()
            self._report = asyncio.create_task(self._ask_all())
        return await asyncio.shield(self._report)

    def share(self, redis: RedisTier) -> None:
        """Shares with other processes what replicas have died of."""
        self._shared = RedisQuarantine(redis, QUARANTINE_SECONDS)
        for route in self._all:
            route.replays.share(self._shared)

    async def close(self) -> None:
        """Sends the cancellations that are still on their way. Handles need no closing."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._shared is not None:
            await self._shared.close()

    async def _attempt(self, handle: DeploymentHandle, request: Request) -> AsyncGenerator[Event, None]:
        """The events of one replica's attempt; what goes wrong between here and there becomes a `Failed`."""
        stream = handle.options(stream=True).generate.remote(request)
        ended = False
        try:
            async for event in stream:
                ended = isinstance(event, Finished | Failed)
                yield event
            if not ended:
                yield Failed(request.id, EngineStopped("the engine stopped before the request was finished"))
        except Exception as error:
            refusal = as_engine_error(error)
            if refusal is None:
                raise
            log.warning("request %s: %s", request.id, type(error).__name__)
            yield Failed(request.id, refusal)
        finally:
            # Serve's own cancellation of child calls leaks some of them when many callers leave at once, and a stream
            # that is merely dropped is never cancelled.
            if not ended:
                stream.cancel()
                self._in_background(self._abort_everywhere(handle, request.id))

    async def _abort_everywhere(self, handle: DeploymentHandle, request_id: str) -> None:
        try:
            async with asyncio.timeout(REPORT_TIMEOUT_S):
                await handle.broadcast("abort", request_id).results_async(return_exceptions=True)
        except Exception as error:
            log.warning("request %s: no abort could be sent: %s", request_id, type(error).__name__)

    def _in_background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_all(self) -> BackendReport:
        answers = await asyncio.gather(*(reports_of(route.handle) for route in self._all))
        return BackendReport(tuple(report for reports in answers for report in reports))


async def reports_of(handle: DeploymentHandle) -> list[EngineReport]:
    """What each replica behind `handle` says of itself; those that do not answer in time are left out."""
    try:
        async with asyncio.timeout(REPORT_TIMEOUT_S):
            answers = await handle.broadcast("report").results_async(return_exceptions=True)
    except Exception as error:
        log.warning("a deployment did not report: %s", type(error).__name__)
        return []
    return [answer for answer in answers if isinstance(answer, EngineReport)]


async def _cancelled_by(handle: DeploymentHandle, name: str, tenant: str) -> bool:
    try:
        async with asyncio.timeout(REPORT_TIMEOUT_S):
            answers = await handle.broadcast("cancel", name, tenant).results_async(return_exceptions=True)
    except Exception as error:
        log.warning("request %s: no cancellation could be sent: %s", name, type(error).__name__)
        return False
    return any(answer is True for answer in answers)


def as_engine_error(error: Exception) -> EngineError | None:
    """What a failure of Ray's means to the caller; None for what nobody expected. Never carries Ray's text."""
    if isinstance(error, EngineError):
        # Ray's wrapper is an instance of the class too, but its text holds a remote traceback.
        cause = getattr(error, "cause", error)
        return cause if isinstance(cause, EngineError) else None
    if isinstance(error, BackPressureError):
        return Overloaded("too many requests are waiting for this model", error.retry_after_s)
    if isinstance(error, DeploymentUnavailableError):
        return EngineStopped("the model's deployment is not running")
    if isinstance(error, OUT_OF_REACH):
        return EngineStopped("the replica is out of reach")
    if isinstance(error, LOST):
        return EngineLost("the replica was lost before the request was finished")
    if isinstance(error, TimeoutError):
        return EngineStopped("the replica did not answer in time")
    return None

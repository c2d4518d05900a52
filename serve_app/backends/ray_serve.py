"""Makes images on Ray Serve replicas, through their deployments' handles."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import Any, Final

from ray.exceptions import ActorUnavailableError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from deployments.engine.protocol.errors import EngineError, EngineLost, EngineStopped, Overloaded
from deployments.engine.protocol.events import Event, Failed, Finished
from deployments.engine.protocol.inputs import Enlargement
from deployments.engine.protocol.report import EngineReport, TokenCount
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from serve_app.backends.protocol import BackendReport

log = logging.getLogger(__name__)

REPORT_TIMEOUT_S = 2.0

COUNT_TIMEOUT_S: Final = 5.0

# A replica may have to load the annotator first.
HINT_TIMEOUT_S: Final = 120.0

# Behind others, and on a CPU: a minute each.
ENLARGE_TIMEOUT_S: Final = 600.0

# The way to the replica is gone for now, which is no sign that it died of the request.
OUT_OF_REACH = (ActorUnavailableError, ReplicaUnavailableError)
LOST = (RayActorError, WorkerCrashedError)


class RayBackend:
    """A `Backend` whose engines are the replicas of one deployment, which host `specs` and should be of `version`."""

    def __init__(self, handle: DeploymentHandle, specs: Sequence[ModelSpec], version: str = "") -> None:
        self._handle, self._version = handle, version
        self._models = tuple(specs)
        # asyncio keeps weak references only: without these a cancellation could be collected before it was sent.
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The models of this deployment, in the configuration's order."""
        return self._models

    @property
    def counts(self) -> Mapping[str, int]:
        """Nothing: this backend makes one attempt, and repeats none."""
        return {}

    async def cancel(self, name: str, tenant: str) -> bool:
        """Ends the tenant's requests of this name on every replica, whichever ingress they came through."""
        failure = f"request {name}: a replica did not answer a cancellation"
        answers = await self._ask_replicas(failure, "cancel", name, tenant)
        return any(answer is True for answer in answers)

    async def forget_states(self) -> None:
        """Has every replica forget its states."""
        await self._ask_replicas("states may not have been forgotten", "forget_states")

    async def count_tokens(self, request: Request) -> tuple[TokenCount, TokenCount]:
        """Has a replica count the tokens of the request's prompts."""
        counts: tuple[TokenCount, TokenCount]
        counts = await _wait_for_answer(self._handle.count_tokens.remote(request), COUNT_TIMEOUT_S)
        return counts

    async def make_hints(self, request: Request) -> tuple[bytes, ...]:
        """Has a replica make the hints that the request's ControlNets would get."""
        hints: tuple[bytes, ...] = await _wait_for_answer(self._handle.make_hints.remote(request), HINT_TIMEOUT_S)
        return hints

    async def enlarge(self, enlargement: Enlargement) -> bytes:
        """Has a replica enlarge a picture."""
        file: bytes = await _wait_for_answer(self._handle.enlarge.remote(enlargement), ENLARGE_TIMEOUT_S)
        return file

    async def report(self) -> BackendReport:
        """Returns the reports of the replicas that answer within `REPORT_TIMEOUT_S`."""
        answers = await self._ask_replicas("a replica did not report", "report")
        return BackendReport(tuple(answer for answer in answers if isinstance(answer, EngineReport)))

    async def close(self) -> None:
        """Sends the cancellations that are still on their way. Handles need no closing."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """Yields the events of one replica's attempt; what goes wrong on the way there becomes a `Failed`."""
        stream = self._handle.options(stream=True).generate.remote(request, self._version)
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
                failure = f"request {request.id}: a replica did not answer an abort"
                self._start_task(self._ask_replicas(failure, "abort", request.id))

    async def _ask_replicas(self, failure: str, method: str, *arguments: str) -> Sequence[Any]:
        """Calls `method` of every replica and returns the answers that come within `REPORT_TIMEOUT_S`.

        Logs `failure` for each of the others, and once if the deployment has no replica.
        """
        until = asyncio.get_running_loop().time() + REPORT_TIMEOUT_S
        try:
            async with asyncio.timeout_at(until):
                # Ray's public `results_async` waits for all replicas together: one that hangs would hide the others.
                calls = await self._handle.broadcast(method, *arguments)._fetch_replica_results_async()
        except Exception as error:
            log.warning("%s: %s", failure, type(error).__name__)
            return []
        waiting = (_wait_until(until, call.get_async()) for call in calls)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        for lost in (answer for answer in answers if isinstance(answer, BaseException)):
            log.warning("%s: %s", failure, type(lost).__name__)
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _start_task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _wait_until(loop_time: float, answer: Awaitable[Any]) -> Any:
    async with asyncio.timeout_at(loop_time):
        return await answer


async def _wait_for_answer(response: DeploymentResponse, seconds: float) -> Any:
    """Returns a replica's answer. Raises EngineError in place of Ray's errors, and after `seconds` without one.

    Cancelling this cancels the call.
    """
    try:
        async with asyncio.timeout(seconds):
            return await response
    except TimeoutError:
        response.cancel()
        raise EngineStopped("the model's replicas did not answer in time") from None
    except asyncio.CancelledError:
        response.cancel()
        raise
    except Exception as error:
        refusal = as_engine_error(error)
        if refusal is None:
            raise
        raise refusal from None


def as_engine_error(error: Exception) -> EngineError | None:
    """Translates a failure of Ray's for the caller; None for an unexpected one. Never carries Ray's text."""
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

"""The handle-backed backend against handles of our own: replays, cancellation, errors, reports."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, WorkerCrashedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.engine.protocol.errors import (
    EngineLost,
    EngineStopped,
    GenerationFailed,
    InvalidParameter,
    Overloaded,
    Quarantined,
)
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, ImageDone, Progress, Timings
from deployments.engine.protocol.inputs import Enlargement
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.report import EngineReport, TokenCount
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from serve_app.backends import ray_serve
from serve_app.backends.protocol import BackendReport
from serve_app.backends.ray_serve import RayBackend, as_engine_error
from serve_app.backends.routing import RoutingBackend, route_to
from tests.serve_app.fakes import until

SPEC = ModelSpec("tiny", "nowhere", native_size=64)
REQUEST = Request("r1", GenerationParams(prompt="a cup", seed=1, num_images=2, model_name="tiny", width=64, height=64))

# What one attempt does: events to give, then an error to raise, then waiting for ever.
Script = Sequence[Event | Exception]


NEVER = object()


def image(request_id: str, index: int) -> ImageDone:
    return ImageDone(request_id, index, 1 + index, "png", 64, 64, b"pixels")


class FakeStream:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.cancelled = False

    def __aiter__(self) -> AsyncGenerator[Event, None]:
        return self._events()

    async def _events(self) -> AsyncGenerator[Event, None]:
        for item in self.script:
            if isinstance(item, Exception):
                raise item
            yield item
        if not isinstance(self.script[-1], Finished | Failed):
            await asyncio.Event().wait()

    def cancel(self) -> None:
        self.cancelled = True


class FakeHandle:
    """Looks like a DeploymentHandle, as far as the backend looks."""

    def __init__(self, attempts: Callable[[str], Script], reports: Sequence[Any] = ()) -> None:
        self.attempts = attempts
        self.reports = reports
        self.streams: list[FakeStream] = []
        self.asked: list[str] = []
        self.broadcasts: list[tuple[Any, ...]] = []
        self.generate = self
        self.count_tokens = self.make_hints = self.enlarge = SimpleNamespace(remote=self._respond)
        self.answer: Any = None
        self.responses: list[asyncio.Task[Any]] = []

    def options(self, *, stream: bool) -> "FakeHandle":
        assert stream
        return self

    def remote(self, request: Request, _version: str) -> FakeStream:
        self.asked.append(request.id)
        self.streams.append(FakeStream(self.attempts(request.id)))
        return self.streams[-1]

    def _respond(self, _: Any) -> asyncio.Task[Any]:
        self.responses.append(asyncio.ensure_future(self._answer()))
        return self.responses[-1]

    async def _answer(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return await asyncio.Event().wait() if self.answer is None else self.answer

    def broadcast(self, *call: Any) -> "FakeHandle":
        self.broadcasts.append(call)
        return self

    async def _fetch_replica_results_async(self) -> Sequence["FakeResult"]:
        return [FakeResult(each) for each in self.reports]


class FakeResult:
    """One replica's answer to a broadcast: an error of its own is raised, and `NEVER` does not come."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def get_async(self) -> Any:
        if self.answer is NEVER:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def backend_of(*handles: FakeHandle) -> RoutingBackend:
    return route_to([RayBackend(handle, (SPEC,)) for handle in handles])


def finished(request_id: str) -> Finished:
    return Finished(request_id, Timings())


async def test_a_replica_that_dies_is_replaced_by_another() -> None:
    def attempts(request_id: str) -> Script:
        if request_id == "r1":
            return [Accepted("r1", 0), image("r1", 0), ActorDiedError()]
        images = [image(request_id, 0), image(request_id, 1)]
        return [Accepted(request_id, 0), Progress(request_id, 1, 2), *images, finished(request_id)]

    backend = backend_of(FakeHandle(attempts))
    events = [event async for event in backend.generate(REQUEST)]
    assert events == [Accepted("r1", 0), image("r1", 0), Progress("r1", 1, 2), image("r1", 1), finished("r1")]
    assert backend.counts == {"replays": 1}


async def test_a_request_that_no_replica_survives_is_quarantined_in_its_deployment() -> None:
    handle = FakeHandle(lambda request_id: [Accepted(request_id, 0), ActorDiedError()])
    backend = backend_of(handle)
    kinds = []
    for name in ("r1", "r2"):
        *_, last = [event async for event in backend.generate(replace(REQUEST, id=name))]
        assert isinstance(last, Failed)
        kinds.append(type(last.error))
    assert kinds == [GenerationFailed, Quarantined]
    assert len(handle.asked) == 3


async def test_an_engine_that_stops_is_a_loss_too() -> None:
    def attempts(request_id: str) -> Script:
        return [Failed("r1", EngineStopped("gone"))] if request_id == "r1" else [finished(request_id)]

    assert [event async for event in backend_of(FakeHandle(attempts)).generate(REQUEST)] == [finished("r1")]


async def test_a_refusal_is_passed_on_and_not_repeated() -> None:
    refusal = Failed("r1", InvalidParameter("prompt", "is too long"))
    handle = FakeHandle(lambda _: [refusal])
    assert [event async for event in backend_of(handle).generate(REQUEST)] == [refusal]
    assert handle.asked == ["r1"]


async def test_back_pressure_is_overload() -> None:
    handle = FakeHandle(lambda _: [BackPressureError(8, 8, retry_after_s=3.0)])
    (event,) = [event async for event in backend_of(handle).generate(REQUEST)]
    assert isinstance(event, Failed)
    assert isinstance(event.error, Overloaded)
    assert event.error.retry_after == 3.0


async def test_leaving_early_cancels_the_stream_and_aborts_everywhere() -> None:
    handle = FakeHandle(lambda request_id: [Accepted(request_id, 0)])
    backend = backend_of(handle)
    events = backend.generate(REQUEST)
    await anext(events)
    await events.aclose()
    await backend.close()
    assert handle.streams[0].cancelled
    assert handle.broadcasts == [("abort", "r1")]


async def test_a_cancelled_caller_cancels_the_stream() -> None:
    handle = FakeHandle(lambda request_id: [Accepted(request_id, 0)])
    backend = backend_of(handle)

    async def read() -> None:
        async for _ in backend.generate(REQUEST):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await backend.close()
    assert handle.streams[0].cancelled
    assert handle.broadcasts == [("abort", "r1")]


async def test_a_cancellation_goes_to_all_replicas_of_all_models() -> None:
    answers = ([False, RuntimeError("a replica that is just dying")], [False, True])
    has_it, has_not = FakeHandle(lambda _: [], reports=answers[1]), FakeHandle(lambda _: [], reports=answers[0])
    assert await backend_of(has_not, has_it).cancel("r1", "me")
    assert not await backend_of(has_not).cancel("r1", "me")
    assert has_it.broadcasts == [("cancel", "r1", "me")]


async def test_a_finished_stream_is_left_alone() -> None:
    handle = FakeHandle(lambda request_id: [Accepted(request_id, 0), finished(request_id)])
    backend = backend_of(handle)
    async for _ in backend.generate(REQUEST):
        pass
    await backend.close()
    assert not handle.streams[0].cancelled
    assert handle.broadcasts == []


async def test_what_nobody_expected_is_raised() -> None:
    handle = FakeHandle(lambda _: [ZeroDivisionError()])
    with pytest.raises(ZeroDivisionError):
        async for _ in backend_of(handle).generate(REQUEST):
            pass


async def test_who_comes_in_vain_to_a_full_deployment_does_not_go_there() -> None:
    handle = FakeHandle(lambda request_id: [Failed(request_id, Overloaded("full", 3.0))])
    backend = backend_of(handle)
    for _ in range(5):
        (refused,) = [event async for event in backend.generate(REQUEST)]
        assert isinstance(refused, Failed)
        assert isinstance(refused.error, Overloaded)
    assert len(handle.asked) == 1


def test_only_a_death_says_something_against_the_request() -> None:
    for error in (ActorDiedError(), WorkerCrashedError()):
        assert isinstance(as_engine_error(error), EngineLost)
    out_of_reach = ActorUnavailableError("the network is down", None)
    for other in (out_of_reach, DeploymentUnavailableError(DeploymentID("tiny")), TimeoutError()):
        assert type(as_engine_error(other)) is EngineStopped


def test_no_text_of_rays_reaches_the_caller() -> None:
    for error in (ActorDiedError(), BackPressureError(8, 8), TimeoutError("took 3 s")):
        translated = as_engine_error(error)
        assert translated is not None
        assert str(error) not in translated.message


REPORT = EngineReport(True, "cpu", ("tiny",))


def test_one_ready_engine_makes_a_backend_ready() -> None:
    both = BackendReport((EngineReport(False, "cuda", ("tiny", "other")), REPORT))
    assert (both.ready, both.device, both.loaded_models) == (True, "cuda, cpu", ("tiny", "other"))


def test_without_a_report_nothing_is_ready() -> None:
    assert not BackendReport().ready


async def test_callers_at_the_same_time_share_one_report() -> None:
    handle = FakeHandle(lambda _: [], reports=[REPORT, RuntimeError("a replica that is just dying")])
    backend = backend_of(handle)
    answers = await asyncio.gather(*(backend.report() for _ in range(5)))
    assert handle.broadcasts == [("report",)]
    assert [answer.engines for answer in answers] == 5 * [(REPORT,)]


async def test_a_replica_that_hangs_is_left_out_and_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_serve, "REPORT_TIMEOUT_S", 0.05)
    backend = backend_of(FakeHandle(lambda _: [], reports=[REPORT, NEVER, REPORT]))
    report = await backend.report()
    assert (report.engines, report.ready) == ((REPORT, REPORT), True)
    assert caplog.messages == ["a replica did not report: TimeoutError"]
    assert await backend_of(FakeHandle(lambda _: [], reports=[NEVER, True])).cancel("r1", "me")


async def test_one_replica_counts_tokens_and_makes_hints_and_its_refusals_come_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = FakeHandle(lambda _: ())
    backend = backend_of(handle)
    handle.answer = (TokenCount(2, 1, 75, 4), TokenCount(0, 1, 75, 4))
    assert await backend.count_tokens(REQUEST) == handle.answer
    handle.answer = (b"png",)
    assert await backend.make_hints(REQUEST) == (b"png",)
    for answer, expected in ((InvalidParameter("prompt", "no"), InvalidParameter), (ActorDiedError(), EngineStopped)):
        handle.answer = answer
        with pytest.raises(expected):
            await backend.count_tokens(REQUEST)
    handle.answer = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        await backend.make_hints(REQUEST)
    handle.answer = b"enlarged"
    assert await backend.enlarge(Enlargement(b"png", "4x", (64, 64))) == b"enlarged"
    monkeypatch.setattr(ray_serve, "COUNT_TIMEOUT_S", 0.01)
    handle.answer = None
    with pytest.raises(EngineStopped, match="in time"):
        await backend.count_tokens(REQUEST)


async def test_a_caller_that_leaves_cancels_the_replicas_work() -> None:
    handle = FakeHandle(lambda _: ())
    call = asyncio.create_task(backend_of(handle).enlarge(Enlargement(b"png", "4x", (64, 64))))
    await until(lambda: bool(handle.responses))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait(handle.responses)
    assert handle.responses[0].cancelled()

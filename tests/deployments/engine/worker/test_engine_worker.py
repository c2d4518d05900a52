"""The engine's thread, as asyncio uses it, on tiny real networks."""

import asyncio
import pickle
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deployments.engine.checkpoints.native_size import with_native_size
from deployments.engine.device.errors import DeviceLost
from deployments.engine.engine import Engine
from deployments.engine.heartbeat import Heartbeat
from deployments.engine.models.manager import DiffusionModelManager
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.errors import (
    Cancelled,
    EngineLost,
    EngineStopped,
    InvalidParameter,
    ModelLoadError,
    Overloaded,
    UnknownModel,
)
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, ImageDone, ImageFailed, Progress
from deployments.engine.protocol.latencies import PHASES
from deployments.engine.protocol.params import GenerationParams, effective_params
from deployments.engine.protocol.report import Load
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.worker.engine_worker import EngineWorker
from deployments.engine.worker.mailbox import Mailbox
from tests.deployments.engine.tiny import save_tiny_checkpoint


@pytest.fixture
async def worker(tiny_checkpoint: Path) -> AsyncIterator[EngineWorker]:
    spec = ModelSpec("tiny", str(tiny_checkpoint))
    worker = await asyncio.to_thread(EngineWorker.load, [spec], EngineConfig(device="cpu", max_rows=16, threads=1))
    yield worker
    await asyncio.to_thread(worker.stop)


def request_for(folder: Path, name: str, steps: int = 5, **asked: object) -> Request:
    spec = with_native_size(ModelSpec("tiny", str(folder)))
    params = GenerationParams.model_validate({"prompt": name, "num_inference_steps": steps, "seed": 1} | asked)
    return Request(name, effective_params(params, spec))


def ask(request: Request, model: str) -> Request:
    params = request.params.model_copy(update={"model_name": model})
    return replace(request, id=f"{model} {request.id}", params=params)


def is_idle(worker: EngineWorker) -> bool:
    load = worker.load_now()
    return (load.images_waiting, load.running) == (0, 0)


async def events_of(worker: EngineWorker, request: Request) -> list[Event]:
    return [event async for event in worker.generate(request)]


async def test_a_worker_is_warm_and_has_counted_nothing(worker: EngineWorker) -> None:
    report = worker.report()
    assert report.ready
    assert report.loaded_models == ("tiny",)
    assert not report.models


async def test_concurrent_requests_share_calls(worker: EngineWorker, tiny_checkpoint: Path) -> None:
    requests = [request_for(tiny_checkpoint, f"r{i}", steps=20) for i in range(6)]
    answers = await asyncio.gather(*(events_of(worker, request) for request in requests))
    for events in answers:
        assert isinstance(events[0], Accepted)
        assert isinstance(events[-1], Finished)
        assert sum(isinstance(event, ImageDone) for event in events) == 1
    assert worker.report().models["tiny"].counters.unet_calls <= 3 * 21


async def test_a_report_says_what_was_done_and_how_long_it_took(worker: EngineWorker, tiny_checkpoint: Path) -> None:
    await asyncio.gather(*(events_of(worker, request_for(tiny_checkpoint, f"r{i}", num_images=i)) for i in (1, 2)))
    report = worker.report()
    made = report.models["tiny"]
    assert (made.counters.requests, made.counters.images) == (2, 3)
    assert made.counters.batch_sizes.total() == made.counters.unet_calls
    assert {phase: each.windows["1m"].count for phase, each in made.durations.items()} == dict.fromkeys(PHASES, 2)
    assert made.durations["total"].ever.percentile(50) >= made.durations["denoise"].ever.percentile(50) > 0
    assert report.load == Load({"low": 0, "normal": 0, "high": 0}, 0, report.load.capacity, report.load.worked)
    assert report.load.worked > 0
    assert report.memory.held_bytes > 0
    assert report.knees["tiny"] >= 2
    timed = {call.rows: call for call in report.calls if call.kind == "denoise"}
    assert all(call.seconds and call.measured_bytes and call.planned_bytes for call in timed.values())
    assert len(pickle.dumps(report)) < 20_000


async def test_closing_the_generator_frees_the_rows(worker: EngineWorker, tiny_checkpoint: Path) -> None:
    stream: AsyncGenerator[Event, None] = worker.generate(request_for(tiny_checkpoint, "x", steps=150, num_images=8))
    async for event in stream:
        if isinstance(event, Progress) and event.step > 1:
            break
    await stream.aclose()
    await asyncio.sleep(0.3)
    assert is_idle(worker)
    assert worker.report().models["tiny"].counters.cancelled == 1


async def test_a_thousand_callers_that_leave_leave_nothing_behind(worker: EngineWorker, tiny_checkpoint: Path) -> None:
    async def comes_and_goes(i: int) -> None:
        stream = worker.generate(request_for(tiny_checkpoint, f"r{i}", steps=100))
        async for _ in stream:
            break
        await asyncio.sleep(i % 7 / 100)
        await stream.aclose()

    for start in range(0, 1000, 100):
        await asyncio.gather(*(comes_and_goes(i) for i in range(start, start + 100)))
    assert len(await events_of(worker, request_for(tiny_checkpoint, "last"))) > 2
    assert is_idle(worker)


async def test_a_full_queue_refuses_at_once_though_a_step_takes_long(tiny_checkpoint: Path) -> None:
    spec = ModelSpec("tiny", str(tiny_checkpoint))
    worker = await asyncio.to_thread(
        EngineWorker.load, [spec], EngineConfig(device="cpu", max_rows=2, queue_limit=1, threads=1)
    )
    try:
        running = worker.generate(request_for(tiny_checkpoint, "runs", steps=50))
        waiting = worker.generate(request_for(tiny_checkpoint, "waits"))
        async for event in running:
            if isinstance(event, Progress) and event.step:
                break
        assert isinstance(await anext(waiting), Accepted)
        held = threading.Event()
        worker._send(lambda _: held.wait(10))
        began = time.monotonic()
        (refused,) = await events_of(worker, request_for(tiny_checkpoint, "in vain"))
        assert time.monotonic() - began < 2
        held.set()
        assert isinstance(refused, Failed)
        assert isinstance(refused.error, Overloaded)
        assert refused.error.retry_after
        async with asyncio.timeout(5):
            while worker.report().models["tiny"].counters.refused != 1:
                await asyncio.sleep(0.01)
        await running.aclose()
        await waiting.aclose()
    finally:
        held.set()
        await asyncio.to_thread(worker.stop)


async def test_nobody_is_told_of_progress_that_nobody_looks_at(worker: EngineWorker, tiny_checkpoint: Path) -> None:
    unwatched = replace(request_for(tiny_checkpoint, "x", steps=20), progress_interval_s=None)
    assert [type(event) for event in await events_of(worker, unwatched)] == [Accepted, ImageDone, Finished]


async def test_an_id_that_runs_already_is_refused(worker: EngineWorker, tiny_checkpoint: Path) -> None:
    first = worker.generate(request_for(tiny_checkpoint, "same", steps=50))
    assert isinstance(await anext(first), Accepted)
    (refused,) = await events_of(worker, request_for(tiny_checkpoint, "same"))
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, InvalidParameter)
    await first.aclose()


async def test_a_cancelled_request_is_told_so_and_frees_its_rows(worker: EngineWorker, tiny_checkpoint: Path) -> None:
    named = replace(request_for(tiny_checkpoint, "x", steps=150, num_images=4), name="batch:1", tenant="me")
    stream = worker.generate(named)
    assert isinstance(await anext(stream), Accepted)
    assert not worker.cancel("batch", "somebody else")
    assert not worker.cancel("batch:", "me")
    assert worker.cancel("batch", "me")
    last = [event async for event in stream][-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, Cancelled)
    assert not worker.cancel("batch", "me")
    async with asyncio.timeout(5):
        while not is_idle(worker):
            await asyncio.sleep(0.01)
    assert worker.report().models["tiny"].counters.cancelled == 1


async def test_a_request_cancelled_before_the_engine_has_it_never_runs(tiny_checkpoint: Path) -> None:
    worker = await asyncio.to_thread(
        EngineWorker.load,
        [ModelSpec("tiny", str(tiny_checkpoint))],
        EngineConfig(device="cpu", threads=1, model_memory_bytes=1),
    )
    try:
        async with asyncio.timeout(10):
            # Nothing fits into one byte: the model has to come back first.
            while worker.report().loaded_models:
                await asyncio.sleep(0.01)
        call = asyncio.create_task(events_of(worker, replace(request_for(tiny_checkpoint, "x", steps=150), name="x")))
        await asyncio.sleep(0)
        assert worker.cancel("x", "")
        (refused,) = await call
        assert isinstance(refused, Failed)
        assert isinstance(refused.error, Cancelled)
        async with asyncio.timeout(5):
            while not sum(model.counters.cancelled for model in worker.report().models.values()):
                await asyncio.sleep(0.01)
    finally:
        await asyncio.to_thread(worker.stop)


async def test_stopping_tells_those_who_wait(worker: EngineWorker, tiny_checkpoint: Path) -> None:
    stream = worker.generate(request_for(tiny_checkpoint, "x", steps=150, num_images=8))
    assert isinstance(await anext(stream), Accepted)
    await asyncio.to_thread(worker.stop)
    last = [event async for event in stream][-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, EngineStopped)
    assert not worker.is_alive
    (refused,) = await events_of(worker, request_for(tiny_checkpoint, "late"))
    assert isinstance(refused, Failed)


async def test_a_loop_that_dies_is_not_ready_and_says_so(worker: EngineWorker, tiny_checkpoint: Path) -> None:
    stream = worker.generate(request_for(tiny_checkpoint, "x", steps=150))
    assert isinstance(await anext(stream), Accepted)

    def dies(_: object) -> None:
        raise MemoryError("injected")

    worker._send(dies)
    last = [event async for event in stream][-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, EngineLost)
    assert not worker.report().ready


async def test_a_lost_device_ends_the_loop_and_is_told_to_whoever_can_end_the_process(tiny_checkpoint: Path) -> None:
    told = threading.Event()
    spec = ModelSpec("tiny", str(tiny_checkpoint))
    worker = await asyncio.to_thread(
        EngineWorker.load, [spec], EngineConfig(device="cpu", max_rows=16, threads=1), on_device_lost=told.set
    )
    stream = worker.generate(request_for(tiny_checkpoint, "x", steps=150))
    assert isinstance(await anext(stream), Accepted)

    def breaks(engine: Engine) -> None:
        def step(has_messages: Callable[[], bool] | None = None) -> bool:
            raise DeviceLost("injected")

        engine.step = step  # type: ignore[method-assign]

    worker._send(breaks)
    last = [event async for event in stream][-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, EngineLost)
    assert await asyncio.to_thread(told.wait, 5)
    assert not worker.is_alive
    await asyncio.to_thread(worker.stop)


@pytest.mark.parametrize(
    "error",
    [DeviceLost("injected"), torch.AcceleratorError("CUDA error: unspecified launch failure")],
    ids=["ours", "CUDA"],
)
def test_a_device_that_is_lost_at_the_start_is_told_as_well(error: BaseException) -> None:
    told: list[str] = []

    def build(_: object) -> Engine:
        raise error

    with pytest.raises(ModelLoadError):
        EngineWorker(build, on_device_lost=lambda: told.append("lost"))
    assert told == ["lost"]


async def test_a_step_that_hangs_is_noticed_and_one_that_is_slow_as_ever_is_not(tiny_checkpoint: Path) -> None:
    now = 0.0
    spec = with_native_size(ModelSpec("tiny", str(tiny_checkpoint)))

    def slowly(emit: Callable[[Event], None]) -> Engine:
        """Each turn takes ten seconds by the worker's clock."""
        model = DiffusionModelManager([spec], torch.device("cpu"), torch.float32).acquire("tiny")
        engine = Engine([model], emit)
        step = engine.step

        def slow_step(has_messages: Callable[[], bool] | None = None) -> bool:
            nonlocal now
            now += 10.0
            return step(has_messages)

        engine.step = slow_step  # type: ignore[method-assign]
        return engine

    worker = await asyncio.to_thread(EngineWorker, slowly, heartbeat=Heartbeat(lambda: now))
    hanging, go_on = threading.Event(), threading.Event()

    def hangs(_: Engine) -> None:
        hanging.set()
        assert go_on.wait(30)

    try:
        worker._send(hangs)
        assert await asyncio.to_thread(hanging.wait, 5)
        lived = []
        for more in (180.0, 30.0):
            now += more
            lived.append(worker.is_alive)
        assert lived == [True, False]
        (refused,) = await events_of(worker, request_for(tiny_checkpoint, "x"))
        assert isinstance(refused, Failed)
        assert isinstance(refused.error, EngineStopped)
    finally:
        go_on.set()
        await asyncio.to_thread(worker.stop)


def test_a_missing_checkpoint_is_said_at_start(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="safetensors"):
        EngineWorker.load([ModelSpec("gone", str(tmp_path))], EngineConfig(device="cpu"))


def test_a_hub_model_without_a_revision_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="revision"):
        EngineWorker.load([ModelSpec("hub", "someone/something", native_size=512)], EngineConfig(device="cpu"))


async def test_unread_progress_is_replaced_and_nothing_else_is() -> None:
    mailbox = Mailbox(asyncio.get_running_loop())
    failed = ImageFailed("x", 0, EngineStopped("gone"))
    for event in (Accepted("x", 0), Progress("x", 1, 9), Progress("x", 2, 9), failed, Progress("x", 3, 9)):
        mailbox.put(event)
    read = [await mailbox.get() for _ in range(4)]
    assert read == [Accepted("x", 0), Progress("x", 2, 9), failed, Progress("x", 3, 9)]


async def test_progress_waits_out_its_interval_and_gives_way_to_whatever_comes_first() -> None:
    mailbox = Mailbox(asyncio.get_running_loop(), progress_interval_s=0.2)
    mailbox.put(Accepted("x", 0))
    assert await mailbox.get() == Accepted("x", 0)
    began = asyncio.get_running_loop().time()
    for step in range(1, 5):
        mailbox.put(Progress("x", step, 9))
    assert await mailbox.get() == Progress("x", 4, 9)
    assert asyncio.get_running_loop().time() - began >= 0.19
    failed = ImageFailed("x", 0, EngineStopped("gone"))
    mailbox.put(Progress("x", 5, 9))
    mailbox.put(failed)
    assert await mailbox.get() == failed


async def test_models_that_left_memory_come_back_while_others_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = save_tiny_checkpoint(tmp_path / "other", seed=50)
    specs = [ModelSpec("tiny", str(tiny_checkpoint)), ModelSpec("other", str(other))]
    worker = await asyncio.to_thread(
        EngineWorker.load, specs, EngineConfig(device="cpu", max_rows=16, threads=1, model_memory_bytes=1)
    )
    try:
        for round_ in range(2):
            requests = [request_for(tiny_checkpoint, f"{round_}/{i}") for i in range(4)]
            requests += [ask(request, "other") for request in requests]
            answers = await asyncio.gather(*(events_of(worker, request) for request in requests))
            assert [sum(isinstance(event, ImageDone) for event in events) for events in answers] == [1] * 8
            async with asyncio.timeout(5):
                # Nobody uses them now, and nothing fits into one byte.
                while worker.report().loaded_models:
                    await asyncio.sleep(0.01)
        (refused,) = await events_of(worker, ask(requests[0], "gone"))
        assert isinstance(refused, Failed)
        assert isinstance(refused.error, UnknownModel)
    finally:
        await asyncio.to_thread(worker.stop)


async def test_a_caller_that_leaves_while_its_model_loads_does_not_keep_it(tiny_checkpoint: Path) -> None:
    worker = await asyncio.to_thread(
        EngineWorker.load,
        [ModelSpec("tiny", str(tiny_checkpoint))],
        EngineConfig(device="cpu", threads=1, model_memory_bytes=1),
    )
    try:
        call = asyncio.create_task(events_of(worker, request_for(tiny_checkpoint, "x")))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(20):
            events = await events_of(worker, request_for(tiny_checkpoint, "y"))
            assert any(isinstance(event, ImageDone) for event in events)
            while worker.report().loaded_models:
                await asyncio.sleep(0.01)
    finally:
        await asyncio.to_thread(worker.stop)


async def test_tokens_are_counted_beside_the_engine_and_never_load_a_model(
    worker: EngineWorker, tiny_checkpoint: Path
) -> None:
    request = request_for(tiny_checkpoint, "a red cup", negative_prompt="cat")
    prompt, negative = worker.count_tokens(request)
    assert (prompt.tokens, negative.tokens) == (3, 1)
    with pytest.raises(EngineStopped):
        worker.count_tokens(ask(request, "other"))

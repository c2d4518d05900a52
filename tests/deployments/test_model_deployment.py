"""The deployment class as a plain object: no Ray, and a worker that only records its calls."""

import asyncio
import io
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from deployments import model_deployment
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, ImageDone, Progress, Timings
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.report import EngineReport, Load
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.similar.saved_states import SavedState, SavedStates
from deployments.engine.worker.engine_worker import EngineWorker
from deployments.model_deployment import EXIT_DEVICE_LOST, ModelReplica
from deployments.sharing.spec import SharingSpec
from deployments.signing.secret_source import SecretSource
from tests.deployments.engine.tiny import save_tiny_checkpoint

REQUEST = Request("r1", GenerationParams(prompt="a cup", seed=1, model_name="tiny", width=64, height=64))
NOWHERE = SharingSpec("redis://127.0.0.1:1/0", "test:", "f" * 64, SecretSource(file=Path(__file__)))
CONFIG = EngineConfig(device="cpu", dtype="float32", max_rows=16, queue_limit=8, threads=1)


class FakeWorker:
    """Answers with `events`, then waits for ever, unless they end the stream."""

    upscalers = None

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.aborted: list[str] = []
        self.is_alive = True
        self.stopped = False
        self.closed = 0
        self.worked = 7.0
        self.saved_states = SavedStates(1000)

    def check_room(self, request: Request) -> None:
        """There is always room."""

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        try:
            for event in self.events:
                yield event
            if not isinstance(self.events[-1], Finished | Failed):
                await asyncio.Event().wait()
        finally:
            self.closed += 1

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def load_now(self) -> Load:
        return Load({"low": 2, "normal": 1}, running=5, capacity=16, worked=self.worked, backlog=4.5)

    def report(self) -> EngineReport:
        return EngineReport(True, load=self.load_now())

    def stop(self) -> None:
        self.stopped = True

    @property
    def states(self) -> SavedStates:
        return self.saved_states


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> FakeWorker:
    fake = FakeWorker([Accepted("r1", 0), Progress("r1", 1, 4)])
    monkeypatch.setattr(EngineWorker, "load", lambda *_args, **_options: fake)
    return fake


@pytest.fixture
def replica(worker: FakeWorker) -> ModelReplica:
    return ModelReplica([ModelSpec("tiny", "nowhere")], CONFIG)


def test_a_replica_without_threads_uses_the_cores_that_it_has_whatever_ray_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[EngineConfig] = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(model_deployment, "usable_cores", lambda: 6)

    def load(_: object, config: EngineConfig, **_options: object) -> FakeWorker:
        loaded.append(config)
        return FakeWorker([])

    monkeypatch.setattr(EngineWorker, "load", load)
    for threads in (None, 2):
        ModelReplica([ModelSpec("tiny", "nowhere")], replace(CONFIG, threads=threads))
    assert [config.threads for config in loaded] == [6, 2]


@pytest.mark.parametrize(("preload", "first"), [("all", None), ("first", "tiny")])
def test_a_replica_loads_what_it_is_to_preload(
    monkeypatch: pytest.MonkeyPatch, preload: Literal["all", "first"], first: str | None
) -> None:
    asked: list[object] = []

    def load(*_: object, first: str | None, **_options: object) -> FakeWorker:
        asked.append(first)
        return FakeWorker([])

    monkeypatch.setattr(EngineWorker, "load", load)
    ModelReplica([ModelSpec("tiny", "nowhere"), ModelSpec("other", "nowhere")], CONFIG, preload=preload)
    assert asked == [first]


def test_a_replica_without_the_watermark_s_method_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(EngineWorker, "load", lambda *_, **__: loaded.append(None))
    with pytest.raises(ValueError, match="nowhere:Nothing"):
        ModelReplica([ModelSpec("tiny", "nowhere")], CONFIG, watermark_method="nowhere:Nothing")
    assert not loaded


def test_a_replica_without_the_key_of_what_it_shares_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(EngineWorker, "load", lambda *_, **__: loaded.append(None))
    keyless = replace(NOWHERE, key=SecretSource(env="NO_SUCH_KEY"))
    with pytest.raises(ValueError, match="redis: key: the environment variable NO_SUCH_KEY must hold at least 32"):
        ModelReplica([ModelSpec("tiny", "nowhere")], CONFIG, sharing=keyless)
    assert not loaded


async def test_events_pass_through_in_order(replica: ModelReplica, worker: FakeWorker) -> None:
    worker.events = [Accepted("r1", 0), Progress("r1", 1, 1), Finished("r1", Timings())]
    assert [event async for event in replica.generate(REQUEST)] == worker.events
    assert worker.aborted == []


@pytest.mark.parametrize(("known", "current"), [("new", True), ("old", False)])
async def test_a_replica_tells_a_caller_that_knows_of_another_version(
    known: str, current: bool, worker: FakeWorker
) -> None:
    made = ImageDone("r1", 0, 5, "png", 64, 64, b"a cup")
    worker.events = [Accepted("r1", 0), made, Finished("r1", Timings())]
    replica = ModelReplica([ModelSpec("tiny", "nowhere")], CONFIG, version="new")
    assert [event async for event in replica.generate(REQUEST, known)][1] == replace(made, is_current=current)


async def test_a_cancelled_call_frees_its_rows(replica: ModelReplica, worker: FakeWorker) -> None:
    seen = asyncio.Event()

    async def read() -> None:
        async for event in replica.generate(REQUEST):
            if isinstance(event, Progress):
                seen.set()

    task = asyncio.create_task(read())
    await seen.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert worker.aborted == ["r1"]
    assert worker.closed == 1


async def test_a_stream_closed_early_frees_its_rows(replica: ModelReplica, worker: FakeWorker) -> None:
    events = replica.generate(REQUEST)
    await anext(events)
    await events.aclose()
    assert worker.aborted == ["r1"]
    assert worker.closed == 1


async def test_a_replica_keeps_no_files(replica: ModelReplica, worker: FakeWorker) -> None:
    worker.events = [Accepted("r1", 0), Finished("r1", Timings())]
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    asked = replace(REQUEST, uploads=Uploads(image=buffer.getvalue()))
    assert [event async for event in replica.generate(asked)] == worker.events
    assert asked.uploads == Uploads()


async def test_a_loop_that_hangs_is_not_healthy(replica: ModelReplica, worker: FakeWorker) -> None:
    await replica.check_health()
    worker.is_alive = False
    with pytest.raises(RuntimeError, match="no progress"):
        await replica.check_health()


async def test_autoscaling_is_told_how_fast_work_is_done_and_how_much_waits(
    replica: ModelReplica, worker: FakeWorker
) -> None:
    assert await replica.record_autoscaling_stats() == {"work": 0.0, "backlog": 4.5}
    worker.worked += 2.0
    told = await replica.record_autoscaling_stats()
    assert told["work"] > 0.0


async def test_a_replica_shares_its_states_and_starts_without_the_redis_that_it_shares_through(
    worker: FakeWorker,
) -> None:
    replica = ModelReplica([ModelSpec("tiny", "nowhere")], CONFIG, sharing=NOWHERE)
    thread = next(thread for thread in threading.enumerate() if thread.name == "share-states")
    assert (await replica.report()).sharing is not None
    replica.__del__()
    assert not thread.is_alive()


async def test_replicas_that_start_before_and_after_a_file_is_replaced_share_nothing(
    worker: FakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[SharingSpec] = []
    monkeypatch.setattr(model_deployment, "share_states", lambda spec, _: shared.append(spec))
    weights = tmp_path / "unet.safetensors"
    for content in (b"before", b"before", b"behind"):
        weights.write_bytes(content)
        # Whoever described the server saw them before all this.
        ModelReplica([ModelSpec("tiny", str(tmp_path), local_digest="seen")], CONFIG, sharing=NOWHERE)
    assert shared[0].family == shared[1].family != shared[2].family


async def test_a_replica_that_keeps_no_states_shares_none(worker: FakeWorker) -> None:
    worker.saved_states = SavedStates(0)
    replica = ModelReplica([ModelSpec("tiny", "nowhere")], CONFIG, sharing=NOWHERE)
    assert (await replica.report()).sharing is None


async def test_a_replica_forgets_its_states_when_it_is_told(replica: ModelReplica, worker: FakeWorker) -> None:
    worker.states.add("kind", SavedState(np.ones(1, dtype=np.float32), 1, torch.zeros(8, 4, 1, 1)))
    await replica.forget_states()
    assert len(worker.states) == 0


def test_user_config_takes_only_what_can_change_live(replica: ModelReplica) -> None:
    replica.reconfigure({"log_level": "INFO"})
    with pytest.raises(ValueError, match="max_rows"):
        replica.reconfigure({"max_rows": 4})


def test_the_engine_is_stopped_with_the_replica(replica: ModelReplica, worker: FakeWorker) -> None:
    replica.__del__()
    assert worker.stopped


LOSES_ITS_DEVICE = """
import asyncio, sys
from deployments.engine.device.errors import DeviceLost
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.spec import ModelSpec
from deployments.model_deployment import EXIT_DEVICE_LOST, ModelReplica
from deployments.signing.secret_source import SecretSource
from deployments.sharing.spec import SharingSpec
from tests.deployments.engine.tiny import save_tiny_checkpoint

def breaks(_):
    raise DeviceLost("injected")

async def serves():
    config = EngineConfig(device="cpu", dtype="float32", max_rows=2, queue_limit=8, threads=1)
    replica = ModelReplica([ModelSpec("tiny", sys.argv[1])], config)
    replica._worker._send(breaks)
    await asyncio.sleep(60)

asyncio.run(serves())
"""


def test_a_replica_that_has_lost_its_device_ends_its_process(tmp_path: Path) -> None:
    """Whatever else runs in it; Serve starts another process, which gets a device that works."""
    command = [sys.executable, "-c", LOSES_ITS_DEVICE, str(save_tiny_checkpoint(tmp_path / "tiny"))]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=50)
    assert ended.returncode == EXIT_DEVICE_LOST, ended.stderr
    assert "the device is lost" in ended.stderr

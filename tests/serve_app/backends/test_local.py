"""The backend around an engine in this process, which is loaded once, off the event loop, at the first use."""

import asyncio
import io
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.errors import EngineStopped, InvalidParameter, ModelLoadError, Overloaded
from deployments.engine.protocol.events import Event
from deployments.engine.protocol.inputs import Enlargement, ImageArray
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.report import EngineReport
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec, UpscalerSpec
from deployments.uploads.enlarging import MOST_WAITING
from deployments.weights.local_files import with_local_digest
from serve_app.backends.local import LocalBackend
from serve_app.service import DiffusionService
from tests.serve_app.fakes import TINY, success
from tests.serve_app.labels.files import file_of

CUP = GenerationParams(prompt="a red cup", num_inference_steps=4, seed=1)


class StubUpscalers:
    """Repeats pixels."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.stopped = threading.Event()

    def enlarge_to(
        self, name: str, picture: ImageArray, size: tuple[int, int], *, is_stopped: Callable[[], bool]
    ) -> ImageArray:
        if name == "endless":
            while not is_stopped():
                time.sleep(0.01)
            self.stopped.set()
        return picture.repeat(size[1] // picture.shape[0], 0).repeat(size[0] // picture.shape[1], 1)


class StubWorker:
    """Looks like an `EngineWorker`, and takes a moment to load."""

    def __init__(self) -> None:
        self.loads: list[tuple[Sequence[ModelSpec], EngineConfig, str]] = []
        self.first: list[str] = []
        self.failure: Exception | None = None
        self.stopped = False
        self.upscalers = StubUpscalers()

    def load(
        self, specs: Sequence[ModelSpec], config: EngineConfig, *, first: str, upscalers: Sequence[UpscalerSpec]
    ) -> "StubWorker":
        self.upscalers.names = [spec.name for spec in upscalers]
        self.loads.append((specs, config, threading.current_thread().name))
        self.first.append(first)
        time.sleep(0.05)
        if self.failure:
            raise self.failure
        return self

    def check_room(self, request: Request) -> None:
        """There is always room."""

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        for event in success(request):
            assert not isinstance(event, Exception | float | threading.Event)
            yield event

    def report(self) -> EngineReport:
        return EngineReport(True, "cpu", ("tiny",))

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> StubWorker:
    worker = StubWorker()
    monkeypatch.setitem(sys.modules, "deployments.engine.worker.engine_worker", SimpleNamespace(EngineWorker=worker))
    return worker


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return replace(TINY, source=str(tmp_path), controlnets={})


async def test_models_load_once_off_the_loop_at_the_first_use(worker: StubWorker, spec: ModelSpec) -> None:
    asked = EngineConfig("cpu", "bfloat16", max_rows=4, queue_limit=9, threads=2, model_memory_bytes=2**20)
    async with DiffusionService(models=[spec], **asked.options) as service:
        assert not worker.loads
        results = await asyncio.gather(*(service.generate(CUP) for _ in range(5)))
    assert len(results) == 5
    ((specs, config, thread),) = worker.loads
    assert (list(specs), thread != threading.current_thread().name) == ([with_local_digest(spec)], True)
    assert config == asked
    assert worker.stopped


async def test_the_model_that_is_asked_for_is_loaded_first_and_the_default_one_if_none_is(
    worker: StubWorker, spec: ModelSpec
) -> None:
    other = replace(spec, name="other", aliases=())
    async with DiffusionService(models=[spec, other]) as service:
        await service.generate(CUP.model_copy(update={"model_name": "other"}))
        await service.start()
    async with DiffusionService(models=[spec, other]) as service:
        await service.start()
        await service.generate(CUP.model_copy(update={"model_name": "other"}))
    assert worker.first == ["other", spec.name]
    assert [name for specs, *_ in worker.loads for name in (each.name for each in specs)] == [spec.name, "other"] * 2


async def test_it_is_ready_once_loaded_and_start_does_not_wait(worker: StubWorker, spec: ModelSpec) -> None:
    async with DiffusionService(models=[spec]) as service:
        await service.start()
        assert (await service.health()).status == "starting"
        await service.generate(CUP)
        health = await service.health()
        assert (health.status, health.device, health.loaded_models) == ("healthy", "cpu", 1)
    assert (await service.health()).status == "unhealthy"


async def test_a_caller_that_leaves_while_models_load_leaves_the_loading(worker: StubWorker, spec: ModelSpec) -> None:
    async with DiffusionService(models=[spec]) as service:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await service.generate(CUP)
        assert (await service.generate(CUP)).images
    assert len(worker.loads) == 1


async def test_models_that_do_not_load_say_why_every_time(worker: StubWorker, spec: ModelSpec) -> None:
    worker.failure = ModelLoadError("the weights are broken")
    async with DiffusionService(models=[spec]) as service:
        for _ in range(2):
            with pytest.raises(ModelLoadError, match="the weights are broken"):
                await service.generate(CUP)
        assert (await service.health()).status == "unhealthy"
    assert len(worker.loads) == 1


async def test_a_device_that_is_not_there_is_said_and_does_not_break_health(
    worker: StubWorker, spec: ModelSpec
) -> None:
    worker.failure = RuntimeError("CUDA error: no text of torch's")
    async with DiffusionService(models=[spec], device="cuda:9") as service:
        with pytest.raises(ModelLoadError, match="'cuda:9'"):
            await service.generate(CUP)
        assert (await service.health()).status == "unhealthy"
        assert (await service.get_generation_stats())["loaded_models"] == 0


def test_a_loop_that_ends_while_models_load_takes_nothing_with_it(
    worker: StubWorker, spec: ModelSpec, caplog: pytest.LogCaptureFixture
) -> None:
    async def impatient() -> None:
        async with asyncio.timeout(0.01):
            await service.generate(CUP)

    service = DiffusionService(models=[spec])
    with pytest.raises(TimeoutError):
        asyncio.run(impatient())
    assert asyncio.run(service.generate(CUP)).images
    asyncio.run(service.close())
    assert not caplog.records


async def test_a_closed_service_refuses(worker: StubWorker, spec: ModelSpec) -> None:
    service = DiffusionService(models=[spec])
    await service.close()
    with pytest.raises(EngineStopped):
        await service.generate(CUP)
    assert not worker.loads


def test_it_works_on_one_event_loop_after_another(worker: StubWorker, spec: ModelSpec) -> None:
    service = DiffusionService(models=[spec])
    for _ in range(2):
        assert len(asyncio.run(service.generate_text_to_image(CUP))) == 1
    asyncio.run(service.close())
    assert len(worker.loads) == 1


def test_a_folder_that_is_no_checkpoint_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="'mine'"):
        DiffusionService(models=[ModelSpec("mine", str(tmp_path))])
    with pytest.raises(ModelLoadError, match="native_size"):
        DiffusionService(models=[ModelSpec("mine", "someone/something")])


def test_two_models_cannot_answer_to_one_name(spec: ModelSpec) -> None:
    with pytest.raises(ValueError, match="maker/tiny"):
        LocalBackend([spec, replace(spec, name="other")])
    with pytest.raises(ValueError, match="no models"):
        DiffusionService(models=[])


def test_the_demo_models_answer_to_the_guides_names() -> None:
    service = DiffusionService()
    for name, member in (
        ("runwayml/stable-diffusion-v1-5", "demo-sd"),
        ("stabilityai/stable-diffusion-2-1", "demo-sd21"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "demo-sdxl"),
        ("runwayml/stable-diffusion-inpainting", "demo-inpaint"),
        (None, "demo-sd"),
    ):
        assert service.model(name).name == member


async def test_pictures_are_enlarged_beside_the_engine_by_the_upscalers_that_it_has_loaded(
    worker: StubWorker, spec: ModelSpec
) -> None:
    async with DiffusionService(models=[spec], upscalers=[UpscalerSpec("repeat", "nowhere")]) as service:
        enlarged = await service.enlarge(Enlargement(file_of("png"), "repeat", (144, 112)))
        assert Image.open(io.BytesIO(enlarged)).size == (144, 112)
        assert worker.upscalers.names == ["repeat"]
        with pytest.raises(InvalidParameter, match="picture"):
            await service.enlarge(Enlargement(b"no picture", "repeat", (144, 112)))


async def test_a_caller_that_leaves_ends_the_enlarging_and_too_many_are_refused(
    worker: StubWorker, spec: ModelSpec
) -> None:
    async with DiffusionService(models=[spec], upscalers=[UpscalerSpec("endless", "nowhere")]) as service:
        asked = Enlargement(file_of("png"), "endless", (128, 128))
        calls = [asyncio.create_task(service.enlarge(asked)) for _ in range(MOST_WAITING + 1)]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        assert isinstance(refused.exception(), Overloaded)
        for call in waiting:
            call.cancel()
        assert await asyncio.to_thread(worker.upscalers.stopped.wait, 5)
        await asyncio.wait(waiting)

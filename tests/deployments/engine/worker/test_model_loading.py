"""Models are loaded again while an engine serves: warm before anybody uses them, and without stopping the engine."""

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deployments.engine.device.errors import DeviceLost
from deployments.engine.models import loaded_model, manager
from deployments.engine.models.attention import AttentionChoice
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.models.manager import DiffusionModelManager
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.errors import EngineError, EngineLost, ModelLoadError
from deployments.engine.protocol.events import Event, Failed, Finished, ImageDone, Progress
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.worker import model_loading
from deployments.engine.worker.engine_worker import EngineWorker
from deployments.engine.worker.model_loading import warm_model
from tests.deployments.engine.harness import request_for
from tests.deployments.engine.tiny import save_tiny_checkpoint

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> list[ModelSpec]:
    other = save_tiny_checkpoint(tmp_path_factory.mktemp("model_loading") / "other", seed=50)
    return [ModelSpec("stays", str(tiny_checkpoint)), ModelSpec("left", str(other))]


@pytest.fixture
def told() -> threading.Event:
    return threading.Event()


@pytest.fixture
async def worker(specs: list[ModelSpec], told: threading.Event, tiny_model: LoadedModel) -> AsyncIterator[EngineWorker]:
    """Hosts `stays`; there was no room for `left`."""
    room = tiny_model.bytes + 1000
    config = EngineConfig(device="cpu", backend="torch", max_rows=2, threads=1, model_memory_bytes=room)
    worker = await asyncio.to_thread(EngineWorker.load, specs, config, on_device_lost=told.set)
    assert worker.report().loaded_models == ("stays",)
    yield worker
    await asyncio.to_thread(worker.stop)


@pytest.fixture
def ask(tiny_model: LoadedModel) -> Callable[..., Request]:
    def ask(model: str, steps: int = 3) -> Request:
        request = request_for(tiny_model, model, num_inference_steps=steps)
        return replace(request, params=request.params.model_copy(update={"model_name": model}))

    return ask


async def answer(worker: EngineWorker, request: Request) -> list[Event]:
    async with asyncio.timeout(20):
        return [event async for event in worker.generate(request)]


async def test_a_model_that_comes_back_is_warm_before_it_serves_and_the_loop_goes_on(
    worker: EngineWorker, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[bool] = []
    warmed: list[tuple[str, str, bool]] = []

    def slowly(model: LoadedModel, in_use: object) -> None:
        """Takes until the engine has made some steps more."""
        hosted = "left" in worker.report().loaded_models
        warmed.append((model.spec.name, threading.current_thread().name.rpartition("_")[0], hosted))
        enough, deadline = len(steps) + 20, time.monotonic() + 15
        while len(steps) < enough:
            assert time.monotonic() < deadline, "the engine's loop waits"
            time.sleep(0.01)

    monkeypatch.setattr(model_loading, "_call_networks", slowly)
    loading = asyncio.create_task(answer(worker, ask("left")))
    while not loading.done():
        for event in await answer(worker, ask("stays", steps=10)):
            if isinstance(event, Progress):
                steps.append(worker.is_alive)
    assert isinstance((await loading)[-1], Finished)
    # There is room for one: `stays` may have to come back before `left` has answered.
    assert warmed[0] == ("left", "load-model", False)
    assert all(steps)


def test_warming_calls_every_network_that_nobody_else_uses(tiny_controlled: LoadedModel) -> None:
    model, called = tiny_controlled, []
    nets = {f"net {name}": net.network for name, net in model.controlnets.items()}
    watched = {"unet": model.unet, "text": model.prompt_encoder.text_encoders[0], "vae": model.vae.decoder} | nets
    hooks = [
        network.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, network in watched.items()
    ]
    try:
        # A prompt that was encoded before would not be again.
        model.prompt_encoder._cache.clear()
        warm_model(model, set())
        assert sorted(called) == sorted(watched)
        called.clear()
        warm_model(model, set(model.networks))
        assert called == ["unet"]
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(("error", "raised"), [(LOST, DeviceLost), (KeyError("x"), ModelLoadError), (FULL, None)])
def test_a_warm_up_that_fails_says_so_and_one_that_finds_no_memory_is_left_out(
    error: Exception, raised: type[BaseException] | None, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(model_loading, "_call_networks", fails)
    if raised is None:
        warm_model(tiny_model, set())
        return
    with pytest.raises(raised):
        warm_model(tiny_model, set())


async def test_a_load_that_finds_no_memory_has_what_is_idle_gone_when_it_tries_again(
    worker: EngineWorker, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker._engine is not None
    assert isinstance((await answer(worker, ask("stays")))[-1], Finished)
    gone = weakref.ref(worker._engine.models["stays"].unet)
    half_loaded: list[weakref.ref[nn.Module]] = []
    found: list[object] = []

    def load(*given: Any) -> LoadedModel:
        if not half_loaded:
            network = nn.Linear(2, 2)
            half_loaded.append(weakref.ref(network))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert worker._engine is not None
        found.extend((gone(), half_loaded[0](), *worker._engine.models))
        return load_model(*given)

    monkeypatch.setattr(manager, "load_model", load)
    assert isinstance((await answer(worker, ask("left")))[-1], Finished)
    assert found == [None, None]
    assert worker.is_alive


@pytest.mark.parametrize(
    ("error", "told_as"),
    [
        (FULL, "does not fit into the device's memory"),
        (OSError(12, "Cannot allocate memory"), "does not fit into the device's memory"),
        (RuntimeError("what nobody thought of"), "could not be loaded"),
    ],
    ids=["full", "no room to map", "unknown"],
)
async def test_a_model_that_cannot_be_loaded_costs_its_callers_only(
    error: Exception,
    told_as: str,
    worker: EngineWorker,
    ask: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> LoadedModel:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(manager, "load_model", fails)
        refusals = [(await answer(worker, ask("left")))[-1] for _ in range(2)]
    for refused in refusals:
        assert isinstance(refused, Failed)
        assert isinstance(refused.error, ModelLoadError)
        assert told_as in refused.error.message
    assert worker.is_alive
    assert any(isinstance(event, ImageDone) for event in await answer(worker, ask("left")))


@pytest.mark.parametrize("where", ["load_model", "warm"])
async def test_a_device_that_is_lost_while_a_model_loads_ends_the_process(
    where: str,
    worker: EngineWorker,
    told: threading.Event,
    ask: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> LoadedModel:
        raise LOST

    if where == "warm":
        monkeypatch.setattr(model_loading, "_call_networks", fails)
    else:
        monkeypatch.setattr(manager, "load_model", fails)
    waiting = worker.generate(ask("stays", steps=150))
    await anext(waiting)
    refused = (await answer(worker, ask("left")))[-1]
    assert isinstance(refused, Failed)
    error: EngineError = refused.error
    assert isinstance(error, EngineLost)
    assert await asyncio.to_thread(told.wait, 2)
    assert not worker.is_alive
    last = [event async for event in waiting][-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, EngineLost)


def test_attention_is_chosen_once_and_never_beside_an_engine_that_serves(
    specs: list[ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = AttentionChoice()
    measured: list[object] = []
    adopted: list[AttentionChoice] = []

    def choose(unet: object, *_: object) -> AttentionChoice:
        measured.append(unet)
        return chosen

    def adopt(_: object, choice: AttentionChoice) -> AttentionChoice:
        adopted.append(choice)
        return choice

    monkeypatch.setattr(loaded_model, "choose_attention", choose)
    monkeypatch.setattr(loaded_model, "adopt_attention", adopt)
    manager = DiffusionModelManager(specs, CPU, torch.float32, budget_bytes=1)
    for _ in range(3):
        assert manager.acquire("left").attention is chosen
        manager.release("left")
    assert len(measured) == 1
    assert adopted == [chosen, chosen]

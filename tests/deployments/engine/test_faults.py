"""CUDA's faults, imitated on a CPU: devices lost, or full, wherever that shows; threads that end."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from deployments.engine import engine as engine_module
from deployments.engine.conditioning.image_encoder import ImageEncoder
from deployments.engine.conditioning.prompt_encoder import PromptEncoder
from deployments.engine.device.errors import DeviceLost
from deployments.engine.device.memory import CpuMemory
from deployments.engine.engine import Engine
from deployments.engine.heartbeat import Heartbeat
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.errors import DoesNotFit, EngineError, EngineLost, Overloaded
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, ImageDone, ImageFailed, Preview
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.steps import decode, pictures, stepper
from deployments.engine.steps.decode import Decoder
from deployments.engine.worker.engine_worker import EngineWorker
from tests.deployments.engine.harness import request_for
from tests.deployments.engine.steps.simulated_device import SimulatedDevice

AT_MOST_S = 2.0
"""Until everybody knows."""

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

Patch = pytest.MonkeyPatch


def make_raiser(error: BaseException) -> Callable[..., Any]:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


def name_of(error: BaseException) -> str:
    return type(error).__name__


def broken_fp32(patch: Patch, error: Exception) -> None:
    patch.setattr(pictures, "find_valid", lambda pixels: torch.zeros(len(pixels), dtype=torch.bool))
    patch.setattr(pictures, "decode_in_fp32", make_raiser(error))


def broken_release(after: Callable[[Patch, Exception], None]) -> Callable[[Patch, Exception], None]:
    """Memory runs out somewhere, and when what is cached shall be given back, the device fails."""

    def breaks(patch: Patch, error: Exception) -> None:
        after(patch, FULL)
        patch.setattr(CpuMemory, "release", make_raiser(error))

    return breaks


def at(place: Any, name: str) -> Callable[[Patch, Exception], None]:
    return lambda patch, error: patch.setattr(place, name, make_raiser(error))


PLACES: dict[str, Callable[[Patch, Exception], None]] = {
    "encoding a prompt": at(PromptEncoder, "encode"),
    "encoding a picture": at(ImageEncoder, "encode"),
    "beginning a row": at(engine_module, "begin_row"),
    "a step": at(stepper, "denoise_step"),
    "looking for infinity": at(torch, "isfinite"),
    "what a preview points to": at(engine_module, "predict_previews"),
    "shrinking a preview": at(torch.nn.functional, "avg_pool2d"),
    "decoding": at(decode, "decode_latents"),
    "decoding in fp32": broken_fp32,
    "releasing after a decoding": broken_release(at(decode, "decode_latents")),
    "releasing after a step": broken_release(at(stepper, "denoise_step")),
    "releasing after a preparation": broken_release(at(PromptEncoder, "encode")),
    "releasing after a row": broken_release(at(engine_module, "begin_row")),
}


@dataclass
class Broken:
    """A worker, and whether it has said that its device is lost."""

    worker: EngineWorker
    told: threading.Event

    async def answer(self, request: Request) -> list[Event]:
        async with asyncio.timeout(10):
            return [event async for event in self.worker.generate(request)]


@contextmanager
def run_worker(model: LoadedModel) -> Iterator[Broken]:
    """Yields a warm worker, of two rows so that this takes no time."""
    told = threading.Event()
    worker = EngineWorker(
        lambda emit: Engine([model], emit, EngineConfig(max_rows=2)), threads=1, on_device_lost=told.set
    )
    try:
        yield Broken(worker, told)
    finally:
        worker.stop()


def picture_request(model: LoadedModel, name: str = "x") -> Request:
    """Returns a request for everything that an engine does: a prompt, an image, steps, a preview, decoding."""
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    return request_for(model, name, Inputs(image=grey), previews=1, num_inference_steps=3, strength=1.0)


@pytest.mark.parametrize("place", PLACES)
async def test_a_lost_device_ends_the_process_wherever_it_shows(
    place: str, tiny_model: LoadedModel, monkeypatch: Patch
) -> None:
    with run_worker(tiny_model) as broken:
        PLACES[place](monkeypatch, LOST)
        began = time.monotonic()
        answer = await broken.answer(picture_request(tiny_model))
        assert isinstance(answer[-1], Failed)
        assert isinstance(answer[-1].error, EngineLost)
        assert broken.told.wait(AT_MOST_S)
        assert time.monotonic() - began < AT_MOST_S
        assert not broken.worker.is_alive


@pytest.mark.parametrize(
    "error", [LOST, RuntimeError("CUDA error: unknown error"), FULL], ids=lambda e: type(e).__name__
)
def test_a_step_that_was_not_finished_is_never_taken_for_one_that_was(error: Exception, monkeypatch: Patch) -> None:
    """Its rows have moved by then: what they hold cannot be told from noise."""
    made = SimpleNamespace(padded_rows=2, shallow_rows=0, control_rows=0, changed_rows=0)
    monkeypatch.setattr(stepper, "denoise_step", lambda *_: made)
    monkeypatch.setattr(stepper, "current_stream", lambda _: SimulatedDevice(error=error))
    plan = SimpleNamespace(has_measured=lambda *_: True)
    monkeypatch.setattr(stepper, "Arena", lambda *_: None)
    monkeypatch.setattr(stepper, "CallPlanner", lambda *_: SimpleNamespace(plan=lambda *_: None))
    monkeypatch.setattr(stepper, "StepGraphs", lambda *_: SimpleNamespace(find=lambda _: None))
    params = SimpleNamespace(exact=False)
    row = SimpleNamespace(
        request=SimpleNamespace(params=params, loras=()), unet_rows=2, is_shallow=False, controls=(), slot=object()
    )
    model = SimpleNamespace(device=torch.device("cuda"), unet=None)
    stepping = stepper.Stepper(cast(Any, plan), cast(Any, None), CpuMemory(), (2,))
    list(stepping.step(cast(Any, model), Bucket("tiny", 64, 64), cast(Any, [row]), cast(Any, None)))
    with pytest.raises(DeviceLost):
        list(stepping.finish())


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("encoding a prompt", Overloaded),
        ("encoding a picture", Overloaded),
        ("beginning a row", Overloaded),
        ("a step", DoesNotFit),
        ("looking for infinity", DoesNotFit),
        ("decoding", DoesNotFit),
        ("decoding in fp32", DoesNotFit),
    ],
)
async def test_a_full_device_costs_one_request_and_no_more(
    place: str, error: type[EngineError], tiny_model: LoadedModel, monkeypatch: Patch
) -> None:
    with run_worker(tiny_model) as full:
        with monkeypatch.context() as patch:
            PLACES[place](patch, FULL)
            answer = await full.answer(picture_request(tiny_model))
        failed = [event.error for event in answer if isinstance(event, ImageFailed | Failed)]
        assert [type(each) for each in failed] == [error]
        assert full.worker.is_alive
        after = await full.answer(picture_request(tiny_model, "after"))
        assert [type(event) for event in after if isinstance(event, ImageDone | Finished)] == [ImageDone, Finished]


async def test_out_of_memory_in_a_preview_costs_only_the_preview(tiny_model: LoadedModel, monkeypatch: Patch) -> None:
    with run_worker(tiny_model) as full:
        with monkeypatch.context() as patch:
            PLACES["shrinking a preview"](patch, FULL)
            answer = await full.answer(picture_request(tiny_model))
        assert [type(event) for event in answer if isinstance(event, ImageDone | ImageFailed | Preview)] == [ImageDone]
        again = await full.answer(picture_request(tiny_model, "again"))
        assert {Preview, ImageDone} <= {type(event) for event in again}


@pytest.mark.parametrize("name", ["_gather", "_encode"])
@pytest.mark.parametrize(
    "error", [KeyError("a fault of ours"), MemoryError(), SystemExit()], ids=lambda e: type(e).__name__
)
async def test_a_decoders_thread_that_ends_is_noticed_at_once_and_nobody_waits_for_it(
    name: str, error: BaseException, tiny_model: LoadedModel, monkeypatch: Patch
) -> None:
    with run_worker(tiny_model) as broken:
        monkeypatch.setattr(Decoder, name, make_raiser(error))
        answers = await asyncio.gather(*(broken.answer(picture_request(tiny_model, each)) for each in "ab"))
        for answer in answers:
            assert isinstance(answer[-1], Failed)
            assert isinstance(answer[-1].error, EngineLost)
        assert not broken.worker.is_alive
        assert not broken.told.is_set()


A_JOB: Any = SimpleNamespace(row=SimpleNamespace(request=SimpleNamespace(id="x")))


async def test_a_dead_decoder_is_seen_while_the_loop_is_busy(tiny_model: LoadedModel, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Decoder, "_gather", make_raiser(KeyError("a fault of ours")))
    busy = threading.Event()
    decoder = Decoder(lambda _: None, cast(Any, None), CpuMemory(), on_failure=busy.set)
    try:
        until(lambda: decoder.is_alive)
        decoder._jobs.put(A_JOB)
        assert busy.wait(AT_MOST_S)
        assert not decoder.is_alive
        assert isinstance(decoder.failure, KeyError)
    finally:
        decoder.close()


def test_a_decoder_that_hangs_is_noticed_and_one_that_has_nothing_to_do_is_not(monkeypatch: Patch) -> None:
    now = 0.0
    begun, go_on = threading.Event(), threading.Event()

    def hangs(*_: Any) -> list[Any]:
        begun.set()
        assert go_on.wait(10)
        return []

    monkeypatch.setattr(decode, "IDLE_S", 0.01)
    monkeypatch.setattr(Decoder, "_gather", lambda _, job: [job])
    monkeypatch.setattr(Decoder, "_decode", hangs)
    decoder = Decoder(lambda _: None, cast(Any, None), CpuMemory(), heartbeat=Heartbeat(lambda: now))
    try:
        now += 1000.0
        until(lambda: decoder.is_alive)
        decoder._jobs.put(A_JOB)
        assert begun.wait(AT_MOST_S)
        until(lambda: decoder.is_alive)
        now += 31.0
        until(lambda: not decoder.is_alive)
        go_on.set()
        until(lambda: decoder.is_alive)
    finally:
        go_on.set()
        decoder.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + AT_MOST_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_decoder_with_nothing_to_do_keeps_no_model_in_memory(tiny_model: LoadedModel) -> None:
    done = threading.Event()
    decoder = Decoder(lambda _: done.set(), cast(Any, SimpleNamespace(has_measured=lambda *_: True)), CpuMemory())
    try:
        model = replace(tiny_model)
        gone = weakref.ref(model)
        row = SimpleNamespace(request=picture_request(model), state=torch.zeros(1, 4, 8, 8), step=1)
        decoder.decode_image(cast(Any, row), model)
        assert done.wait(10)
        del model
        gc.collect()
        until(lambda: gone() is None)
    finally:
        decoder.close()


async def test_whoever_comes_while_the_loop_ends_is_told(tiny_model: LoadedModel) -> None:
    with run_worker(tiny_model) as broken:
        stream = broken.worker.generate(picture_request(tiny_model, "first"))
        assert isinstance(await anext(stream), Accepted)
        broken.worker._send(make_raiser(KeyError("a fault of ours")))
        answers = await asyncio.gather(*(broken.answer(picture_request(tiny_model, str(i))) for i in range(50)))
        assert all(isinstance(answer[-1], Failed) for answer in answers)
        await stream.aclose()

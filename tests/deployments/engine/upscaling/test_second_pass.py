"""A second pass over what a network has enlarged, and what its encoding takes of the memory."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments.engine.conditioning.image_encoder import ImageEncoder
from deployments.engine.device.memory import CpuMemory
from deployments.engine.engine import Engine
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.events import Failed, ImageFailed
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.upscaling import upscalers as upscalers_module
from deployments.engine.upscaling.upscalers import Upscalers
from deployments.engine.worker.warm_up import warm_up
from tests.deployments.engine.harness import Tape, difference, engine_of, make_reference, request_for
from tests.deployments.engine.steps.test_second_pass import LARGER, asked
from tests.deployments.engine.upscaling.networks import save_upscaler

NAME = "tiny x4"


@pytest.fixture
def upscalers(tmp_path: Path) -> Upscalers:
    upscalers = Upscalers([save_upscaler(tmp_path)])
    upscalers.start(torch.device("cpu"), torch.float32, CpuMemory())
    return upscalers


def run_with(upscalers: Upscalers, model: LoadedModel, *requests: Any) -> tuple[Tape, Engine]:
    tape = Tape()
    engine = Engine([model], tape, EngineConfig(), upscalers=upscalers)
    try:
        for request in requests:
            engine.submit(request)
        engine.drain()
    finally:
        engine.close()
    return tape, engine


def test_a_second_pass_begins_from_what_the_network_has_enlarged(
    upscalers: Upscalers, tiny_model: LoadedModel, tiny_checkpoint: Path
) -> None:
    request = asked(tiny_model, "x", NAME, num_images=2)
    tape, _ = run_with(upscalers, tiny_model, request)
    second = request.second_pass
    assert second is not None
    for index, made in enumerate(tape.images("x")):
        first = make_reference(tiny_checkpoint, tiny_model, request, index).astype(np.uint8)
        enlarged = upscalers.enlarge_to(NAME, first, (LARGER, LARGER))
        reference = make_reference(tiny_checkpoint, tiny_model, replace(second, inputs=Inputs(image=enlarged)), index)
        assert difference(made, reference) <= 1


def test_a_network_that_is_not_there_or_makes_too_much_is_refused_before_any_step(
    upscalers: Upscalers, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = request_for(tiny_model, "x").bucket
    for name, most, says in (
        ("another", 2**26, "no such upscaler"),
        (NAME, 15 * pixels.width * pixels.height, "4 times"),
    ):
        monkeypatch.setattr(upscalers_module, "MAX_PIXELS", most)
        tape, engine = run_with(upscalers, tiny_model, asked(tiny_model, "x", name), request_for(tiny_model, "y"))
        (failed,) = tape.of("x", Failed)
        assert isinstance(failed.error, InvalidParameter)
        assert failed.error.field == "hires"
        assert says in failed.error.message
        assert len(tape.images("y")) == 1
        assert (engine.tracker.total.requests, engine.tracker.total.refused) == (1, 1)


def test_a_caller_that_leaves_ends_the_enlarging_at_the_next_tile(
    upscalers: Upscalers, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on, tiles = threading.Event(), threading.Event(), []
    run = upscalers._run
    monkeypatch.setattr(upscalers_module, "SIDES", (64, 48))
    upscalers._side = 48

    def run_late(network: Any, tile: Any) -> Any:
        tiles.append(tile)
        begun.set()
        assert may_go_on.wait(30)
        return run(network, tile)

    def no_encoding(*_: Any) -> Any:
        raise AssertionError("encoded for nobody")

    monkeypatch.setattr(upscalers, "_run", run_late)
    monkeypatch.setattr(ImageEncoder, "encode_once", no_encoding)
    tape = Tape()
    engine = Engine([tiny_model], tape, EngineConfig(), upscalers=upscalers)
    try:
        for name in ("leaves", "leaves too"):
            engine.submit(asked(tiny_model, name, NAME))
        while not begun.is_set():
            engine.step()
        engine.cancel("leaves")
        engine.cancel("leaves too")
        may_go_on.set()
        while engine.admission._decoding:
            engine.step()
        assert len(tiles) == 1
        assert engine.is_alive
    finally:
        may_go_on.set()
        engine.close()


def test_upscalers_and_their_tiles_are_part_of_the_memory_plan(upscalers: Upscalers, tiny_model: LoadedModel) -> None:
    tape = Tape()
    engine = Engine([tiny_model], tape, EngineConfig(), upscalers=upscalers)
    plain = engine_of(tiny_model, tape)
    try:
        bucket = request_for(tiny_model, "x").bucket
        more = engine.admission.plan.call_bytes(bucket, 2) - plain.admission.plan.call_bytes(bucket, 2)
        assert more == upscalers.tile_bytes > 0
        assert engine.admission._weights - plain.admission._weights == upscalers.bytes > 0
    finally:
        engine.close()
        plain.close()


class RoomForSo:
    """A device on which an encoding runs out of memory beside a call of more than some rows of `bucket`."""

    def __init__(self, engine: Engine, bucket: Bucket, most_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.beside: list[int] = []
        encode = ImageEncoder.encode_once

        def encode_beside(encoder: ImageEncoder, image: Any, mask: Any = None) -> Any:
            rows = engine.running.unet_rows(bucket)
            self.beside.append(rows)
            if rows > most_rows:
                raise torch.OutOfMemoryError("injected: an encoding beside too many rows")
            return encode(encoder, image, mask)

        monkeypatch.setattr(ImageEncoder, "encode_once", encode_beside)


def test_an_encoding_is_planned_so_that_it_never_runs_out_beside_others(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether larger calls of so small a network pay is a matter of chance: here memory alone bounds them.
    monkeypatch.setattr(CostModel, "find_knee", CostModel.knee)
    double = asked(tiny_model, "probe", "lanczos", hires={"scale": 2.0})
    encoded = double.encoded_bucket
    assert encoded is not None
    tape = Tape()
    probe = engine_of(tiny_model, tape, max_rows=32)
    try:
        warm_up(probe)
        probe.submit(double)
        probe.drain()
        plan = probe.admission.plan
        assert plan.has_measured("encode", encoded, 1)
        peaks = plan.export(tiny_model.spec.name)
        second = double.second_pass
        assert second is not None
        # Room for the second pass beside an encoding, and for no more than that.
        needed = tiny_model.bytes + plan.call_bytes(second.bucket, 2, encoded=encoded)
    finally:
        probe.close()
    tape = Tape()
    engine = engine_of(tiny_model, tape, max_rows=32, memory=CpuMemory(round(needed / 0.9 * 1.1)))
    try:
        warm_up(engine)
        engine.admission.plan.restore(tiny_model.spec.name, peaks)
        bucket = double.bucket
        held = engine.admission.device.held_bytes(engine.admission._weights)
        alone = engine.admission.plan.rows(bucket, held)
        beside = engine.admission.plan.rows(bucket, held, encoded=encoded)
        assert 2 <= beside < alone
        room = RoomForSo(engine, bucket, beside, monkeypatch)
        for number in range(3):
            engine.submit(asked(tiny_model, f"double {number}", "lanczos", hires={"scale": 2.0}))
            for other in range(4):
                engine.submit(request_for(tiny_model, f"plain {number} {other}", num_inference_steps=30))
        engine.drain()
        assert len(room.beside) == 3
        assert not any(tape.of(f"double {number}", kind) for number in range(3) for kind in (Failed, ImageFailed))
        assert all(len(tape.images(f"plain {number} {other}")) == 1 for number in range(3) for other in range(4))
    finally:
        engine.close()


def test_finished_images_do_not_wait_for_a_picture_that_is_being_enlarged(
    upscalers: Upscalers, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, finished = threading.Event(), threading.Event()
    enlarge = upscalers.enlarge_to

    def enlarge_late(*arguments: Any, **options: Any) -> Any:
        begun.set()
        assert finished.wait(30)
        return enlarge(*arguments, **options)

    monkeypatch.setattr(upscalers, "enlarge_to", enlarge_late)
    tape = Tape()
    engine = Engine([tiny_model], tape, EngineConfig(), upscalers=upscalers)
    try:
        # As many as there are threads that compress.
        for number in range(3):
            engine.submit(asked(tiny_model, f"double {number}", NAME))
        while not begun.is_set():
            engine.step()
        engine.submit(request_for(tiny_model, "plain"))
        while not tape.images("plain"):
            engine.step()
        finished.set()
        engine.drain()
        assert all(len(tape.images(f"double {number}")) == 1 for number in range(3))
    finally:
        finished.set()
        engine.close()

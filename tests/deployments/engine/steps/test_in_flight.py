"""The host runs ahead of the device by two steps and no more, and nobody takes an issued step for a finished one."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine import engine as engine_module
from deployments.engine.device.errors import DeviceLost
from deployments.engine.device.streams import HostStream, copy_to_device, current_stream, new_stream
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.events import Finished, Progress
from deployments.engine.steps import decode, pictures
from deployments.engine.steps.stepper import MOST_IN_FLIGHT
from tests.deployments.engine.harness import Tape, difference, engine_of, request_for, run
from tests.deployments.engine.steps.simulated_device import SimulatedDevice, SimulatedMark, simulate

STEPS = Path(decode.__file__).parent


def some_requests(model: LoadedModel) -> list[Any]:
    asked: list[dict[str, Any]] = [
        {"sampler": "euler_a"},
        {"sampler": "ddim", "num_inference_steps": 5, "previews": 2},
        {"width": 128, "height": 128, "num_inference_steps": 3},
        {"num_images": 2, "sampler": "dpmpp_2m"},
    ]
    return [request_for(model, f"r{i}", **each) for i, each in enumerate(asked)]


def test_at_most_two_steps_are_in_flight_and_the_pictures_are_the_same(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = run(tiny_model, some_requests(tiny_model))
    device = SimulatedDevice()
    simulate(monkeypatch, device)
    ahead, engine = run(tiny_model, some_requests(tiny_model))
    assert device.most == MOST_IN_FLIGHT == 2
    assert not device.queue
    assert engine.tracker.total.images == 5
    for request in some_requests(tiny_model):
        for ours, theirs in zip(ahead.images(request.id), plain.images(request.id), strict=True):
            assert difference(ours, theirs) == 0
        steps = [[event.step for event in tape.of(request.id, Progress)] for tape in (ahead, plain)]
        assert steps[0] == steps[1]
        # The last one is told before the end.
        assert isinstance(ahead.events[request.id][-1], Finished)


def test_what_a_step_took_is_what_the_device_says(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, SimulatedDevice(seconds_each=7.0))
    request = request_for(tiny_model, "x")
    _, engine = run(tiny_model, [request])
    measured = engine.admission.costs.measured_calls()[request.bucket]
    assert set(measured.values()) == {7.0}
    assert engine.tracker.total.denoise_seconds == pytest.approx(7.0 * engine.tracker.total.unet_calls)


def test_a_row_that_retires_is_decoded_only_after_its_last_step(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimulatedDevice()
    simulate(monkeypatch, device)
    marks: list[SimulatedMark] = []
    mark, reached = device.mark, list[bool]()

    def marked() -> SimulatedMark:
        marks.append(mark())
        return marks[-1]

    def decoded(*arguments: Any) -> Any:
        reached.append(marks[len(reached)].is_reached)
        return pictures.decode_latents(*arguments)

    monkeypatch.setattr(device, "mark", marked)
    monkeypatch.setattr(decode, "decode_latents", decoded)
    tape, _ = run(tiny_model, [request_for(tiny_model, "x", previews=1), request_for(tiny_model, "y")])
    assert len(tape.images("x")) == len(tape.images("y")) == 1
    assert device.marks_waited_for == len(marks) == len(reached) == 3
    assert all(mark.before for mark in marks), "nothing was in flight: this shows nothing"
    assert all(reached)


def test_a_step_that_fails_late_is_a_lost_device(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, SimulatedDevice(error=RuntimeError("CUDA error: unknown error")))
    engine = engine_of(tiny_model, Tape())
    try:
        engine.submit(request_for(tiny_model, "x"))
        engine.step()
        engine.step()
        with pytest.raises(DeviceLost):
            engine.step()
    finally:
        engine.close()


def test_a_cancelled_request_gets_no_progress_from_the_steps_that_are_still_in_flight(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(monkeypatch, SimulatedDevice())
    tape = Tape()
    engine = engine_of(tiny_model, tape)
    try:
        engine.submit(request_for(tiny_model, "x"))
        for _ in range(3):
            engine.step()
        told = len(tape.of("x", Progress))
        engine.cancel("x")
        engine.drain()
        engine.settle()
        assert len(tape.of("x", Progress)) == told
        assert engine.tracker.total.unet_calls == 3
    finally:
        engine.close()


def test_on_a_cpu_a_step_is_done_when_it_is_issued() -> None:
    device = torch.device("cpu")
    assert isinstance(current_stream(device), HostStream)
    assert isinstance(new_stream(device), HostStream)
    stopwatch = current_stream(device).start_stopwatch()
    stopwatch.stop()
    assert stopwatch.is_done
    assert stopwatch.wait() >= 0
    given = torch.zeros(3)
    assert copy_to_device(given, device) is given


WAITS = {"item", "cpu", "tolist", "numpy", "synchronize", "nonzero"}
"""Methods that wait until the device has computed a value."""


@pytest.mark.parametrize(
    "path", [*sorted(STEPS.glob("*.py")), Path(engine_module.__file__)], ids=lambda path: str(path.name)
)
def test_the_loop_calls_nothing_that_waits_for_the_device(path: Path) -> None:
    """Only `device/streams.py` waits, and for marks. What the decoder compresses is on the host already."""
    calls = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    allowed = {"decode.py": {"numpy"}}
    assert calls & WAITS <= allowed.get(path.name, set())

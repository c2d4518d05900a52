"""The engine under pressure: memory that runs out, high priorities, deadlines, and its forecasts."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from deployments.engine.device.errors import DeviceLost
from deployments.engine.device.memory import CpuMemory
from deployments.engine.engine import Engine
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import DeadlineExceeded, DoesNotFit, NumericalFailure, Overloaded
from deployments.engine.protocol.events import Accepted, Failed, Finished, ImageDone, ImageFailed, Progress
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.device import Meter
from deployments.engine.steps import decode
from deployments.engine.worker.warm_up import warm_up
from tests.deployments.engine.harness import Tape, difference, engine_of, prepare_all, request_for, run

NAMES = ("a", "b", "c", "d")


class Hooked:
    """A network that does something first."""

    def __init__(self, network: Any, before: Callable[[torch.Tensor], None]) -> None:
        self._network, self._before = network, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        self._before(sample)
        return self._network(sample, *arguments, **options)


def with_unet(model: LoadedModel, before: Callable[[torch.Tensor], None]) -> LoadedModel:
    return replace(model, unet=Hooked(model.unet, before))


def full_above(rows: int) -> Callable[[torch.Tensor], None]:
    def before(sample: torch.Tensor) -> None:
        if len(sample) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return before


@contextmanager
def drive(model: LoadedModel, **options: Any) -> Iterator[tuple[Engine, Tape]]:
    tape = Tape()
    engine = engine_of(model, tape, **options)
    try:
        yield engine, tape
    finally:
        engine.close()


def test_a_batch_that_does_not_fit_is_split_and_everyone_gets_the_same_picture(tiny_model: LoadedModel) -> None:
    requests = [request_for(tiny_model, name, sampler="euler_a") for name in NAMES]
    with drive(with_unet(tiny_model, full_above(2)), max_rows=8) as (engine, tape):
        for request in requests:
            engine.submit(request)
        engine.drain()
        counted = engine.tracker.total
    for request in requests:
        alone, _ = run(tiny_model, [request])
        # Split down to pairs, every call had the size of one alone: not a bit differs.
        assert difference(tape.images(request.id)[0], alone.images(request.id)[0]) == 0
    assert counted.failures == 0
    assert counted.splits >= 3
    assert counted.out_of_memory >= 3


def test_what_ran_out_once_is_not_tried_again(tiny_model: LoadedModel) -> None:
    with drive(with_unet(tiny_model, full_above(4)), max_rows=8) as (engine, tape):
        for name in NAMES:
            engine.submit(request_for(tiny_model, name))
        engine.drain()
        spent = engine.tracker.total.out_of_memory
        for name in ("e", "f", "g", "h"):
            engine.submit(request_for(tiny_model, name))
        engine.drain()
        assert engine.tracker.total.out_of_memory == spent
        assert len(tape.of("h", ImageDone)) == 1


def test_only_a_row_that_does_not_fit_alone_fails(tiny_model: LoadedModel) -> None:
    large = request_for(tiny_model, "large", width=128, height=128)

    def before(sample: torch.Tensor) -> None:
        if sample.shape[-1] > tiny_model.spec.native_size // tiny_model.factor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with drive(with_unet(tiny_model, before)) as (engine, tape):
        engine.submit(large)
        engine.submit(request_for(tiny_model, "small"))
        engine.drain()
    assert isinstance(tape.of("large", ImageFailed)[0].error, DoesNotFit)
    assert len(tape.images("small")) == 1


def test_a_row_that_runs_out_alone_costs_nobody_else_anything(tiny_model: LoadedModel) -> None:
    fails = True

    def before(_: torch.Tensor) -> None:
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with drive(with_unet(tiny_model, before)) as (engine, tape):
        engine.submit(request_for(tiny_model, "fails"))
        engine.submit(request_for(tiny_model, "waits", num_images=2, priority="low"))
        while not tape.of("fails", ImageFailed):
            engine.step()
        fails = False
        engine.submit(request_for(tiny_model, "same"))
        engine.submit(request_for(tiny_model, "other", width=96))
        engine.drain()
    assert isinstance(tape.of("fails", ImageFailed)[0].error, DoesNotFit)
    assert [len(tape.of(name, ImageDone)) for name in ("same", "other")] == [1, 1]


@pytest.mark.parametrize("place", ["decode_latents", "make_in_fp32"])
def test_a_finished_image_is_decoded_once_more_when_memory_runs_out(
    place: str, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cached may be all that is missing, and every step of the image has been made."""
    happened: list[str] = []
    call = getattr(decode, place)

    def fail_once(*given: Any) -> Any:
        happened.append(place)
        if len(happened) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return call(*given)

    monkeypatch.setattr(decode, place, fail_once)
    monkeypatch.setattr(CpuMemory, "release", lambda _: happened.append("release"))
    overflowing = replace(tiny_model, vae=OverflowsInHalf(tiny_model.vae))
    with drive(overflowing if place == "make_in_fp32" else tiny_model) as (engine, tape):
        engine.submit(request_for(tiny_model, "x"))
        engine.drain()
    assert happened[:3] == [place, "release", place]
    assert len(tape.images("x")) == 1


def test_calls_with_more_than_the_network_do_not_say_what_others_may_not_try(tiny_controlled: LoadedModel) -> None:
    hint = Inputs(hints=(np.full((64, 64, 3), 90, dtype=np.uint8),))
    model = with_unet(tiny_controlled, full_above(2))
    with drive(model, max_rows=8) as (engine, tape):
        for name in NAMES[:2]:
            engine.submit(request_for(model, name, hint, controls=({"type": "canny"},)))
        engine.drain()
        assert engine.tracker.total.splits > 0
        assert [len(tape.images(name)) for name in NAMES[:2]] == [1, 1]
        assert engine.admission.plan.rows(request_for(model, "x").bucket, held=0) == 8


def test_batches_are_planned_to_the_budget(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether larger calls of so small a network pay is a matter of chance: here memory alone bounds them.
    monkeypatch.setattr(CostModel, "find_knee", CostModel.knee)
    with drive(tiny_model, max_rows=16) as (probe, _):
        warm_up(probe)
        plan, bucket = probe.admission.plan, request_for(tiny_model, "x").bucket
        needed = tiny_model.bytes + plan.call_bytes(bucket, 4)
    tight = CpuMemory(round(needed / 0.9 * 1.02))
    with drive(tiny_model, max_rows=16, memory=tight) as (engine, _):
        warm_up(engine)
        for i in range(6):
            engine.submit(request_for(tiny_model, str(i)))
        engine.drain()
        counted = engine.tracker.total
    assert max(counted.batch_sizes) == 4
    assert counted.images == 6


def test_what_can_never_fit_is_refused_at_once(tiny_model: LoadedModel) -> None:
    with drive(tiny_model, memory=CpuMemory(tiny_model.bytes * 2)) as (engine, tape):
        warm_up(engine)
        engine.submit(request_for(tiny_model, "huge", width=512, height=512))
        engine.submit(request_for(tiny_model, "small"))
        engine.drain()
        assert isinstance(tape.of("huge", Failed)[0].error, DoesNotFit)
        assert len(tape.images("small")) == 1


def test_an_exact_image_is_refused_where_its_size_of_batch_does_not_fit(tiny_model: LoadedModel) -> None:
    with drive(tiny_model, max_rows=16) as (probe, _):
        warm_up(probe)
        plan, bucket = probe.admission.plan, request_for(tiny_model, "x").bucket
        needed = tiny_model.bytes + plan.call_bytes(bucket, 4)
    with drive(tiny_model, max_rows=16, memory=CpuMemory(round(needed / 0.9 * 1.02))) as (engine, tape):
        warm_up(engine)
        engine.submit(request_for(tiny_model, "exact", exact=True))
        engine.submit(request_for(tiny_model, "not"))
        engine.drain()
        assert isinstance(tape.of("exact", Failed)[0].error, DoesNotFit)
        assert len(tape.images("not")) == 1


def test_a_shape_that_waits_for_memory_is_not_starved_by_smaller_ones(tiny_model: LoadedModel) -> None:
    with drive(tiny_model, max_rows=8) as (probe, _):
        warm_up(probe)
        large = request_for(tiny_model, "large", width=192, height=192)
        needed = tiny_model.bytes + probe.admission.plan.call_bytes(large.bucket, 2)
    with drive(tiny_model, max_rows=8, memory=CpuMemory(round(needed / 0.9) + 2000)) as (engine, tape):
        warm_up(engine)
        for i in range(4):
            engine.submit(request_for(tiny_model, f"before {i}", num_inference_steps=7 + i))
        engine.step()
        engine.submit(large)
        late, started = 0, time.perf_counter()
        while not any(row.request.id == "large" for row in engine.running):
            if len(engine.admission.queue) < 6:
                late += 1
                engine.submit(request_for(tiny_model, f"late {late}", num_inference_steps=7 + late % 5))
            engine.step()
            assert time.perf_counter() - started < 20
        engine.drain()
        assert len(tape.images("large")) == 1


def test_a_black_picture_is_never_a_success(tiny_model: LoadedModel) -> None:
    class Black:
        """A VAE that decodes to black."""

        def __init__(self, vae: Any) -> None:
            self._vae, self.config = vae, vae.config

        def decode(self, latents: torch.Tensor, **options: Any) -> Any:
            return (torch.full_like(self._vae.decode(latents, **options)[0], -1.0),)

    model = replace(tiny_model, vae=Black(tiny_model.vae))
    with drive(model) as (engine, tape):
        engine.submit(request_for(model, "x"))
        engine.drain()
        assert isinstance(tape.of("x", ImageFailed)[0].error, NumericalFailure)
        assert engine.tracker.total.retries == 1


def test_a_vae_that_overflows_in_half_precision_is_asked_again_in_full(tiny_model: LoadedModel) -> None:
    half = replace(tiny_model, dtype=torch.bfloat16, vae=OverflowsInHalf(tiny_model.vae))
    request = request_for(tiny_model, "x")
    with drive(replace(tiny_model, vae=half.vae)) as (engine, tape):
        engine.submit(request)
        while not engine.running or not next(iter(engine.running)).is_done:
            row = next(iter(engine.running), None)
            if row is not None and row.step == len(row.schedule) - 1:
                break
            engine.step()
        engine.models[tiny_model.spec.name] = replace(half, unet=tiny_model.unet, dtype=torch.float32)
        engine.drain()
    healthy, _ = run(tiny_model, [request])
    assert difference(tape.images("x")[0], healthy.images("x")[0]) == 0


class OverflowsInHalf(torch.nn.Module):
    """A VAE whose answers are NaN unless its input is of full precision."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.config = vae, vae.config
        self.asked = 0

    def decode(self, latents: torch.Tensor, **options: Any) -> Any:
        self.asked += 1
        out = self.vae.decode(latents.float(), **options)[0]
        return (out if self.asked > 1 or latents.dtype != torch.float32 else out * torch.nan,)


def test_a_high_row_takes_a_low_ones_place_and_both_get_their_pictures(tiny_model: LoadedModel) -> None:
    low = request_for(tiny_model, "low", priority="low", num_inference_steps=12, sampler="euler_a")
    high = request_for(tiny_model, "high", priority="high", num_inference_steps=4, sampler="ddim")
    with drive(tiny_model, max_rows=2, padded_sizes=(2,)) as (engine, tape):
        engine.submit(low)
        for _ in range(5):
            engine.step()
        engine.submit(high)
        prepare_all(engine)
        engine.step()
        assert [row.request.id for row in engine.running] == ["high"]
        while not tape.of("high", Finished):
            engine.step()
        assert not tape.of("low", Finished)
        engine.drain()
        assert engine.tracker.total.row_steps == 16
        assert engine.tracker.total.paused == 1
    for request in (low, high):
        alone, _ = run(tiny_model, [request], max_rows=2, padded_sizes=(2,))
        assert difference(tape.images(request.id)[0], alone.images(request.id)[0]) == 0


def test_a_paused_row_is_cancelled_as_any_other(tiny_model: LoadedModel) -> None:
    with drive(tiny_model, max_rows=2) as (engine, tape):
        engine.submit(request_for(tiny_model, "low", priority="low"))
        for _ in range(3):
            engine.step()
        engine.submit(request_for(tiny_model, "high", priority="high"))
        prepare_all(engine)
        engine.step()
        assert engine.cancel("low")
        engine.drain()
        assert not tape.of("low", Finished)
        assert engine.tracker.total.wasted_steps == 3
        assert len(tape.images("high")) == 1


def test_a_deadline_that_cannot_be_met_is_refused_before_anything_runs(tiny_model: LoadedModel) -> None:
    with drive(tiny_model) as (engine, tape):
        warm_up(engine)
        engine.submit(request_for(tiny_model, "late", num_inference_steps=150, deadline_ms=10))
        engine.drain()
        (refused,) = tape.events["late"]
        assert isinstance(refused, Failed)
        assert isinstance(refused.error, DeadlineExceeded)
        assert "it would take about" in refused.error.message
        assert engine.tracker.total.refused == 1
        engine.submit(request_for(tiny_model, "fine", deadline_ms=600_000))
        engine.drain()
        assert len(tape.images("fine")) == 1


def test_what_misses_its_deadline_is_dropped_wherever_it_is(tiny_model: LoadedModel) -> None:
    with drive(tiny_model, max_rows=2) as (engine, tape):
        engine.admission.costs.record_call(request_for(tiny_model, "x").bucket, 2, 0, 1e-6)
        for name in ("runs", "waits"):
            engine.submit(request_for(tiny_model, name, num_inference_steps=50, deadline_ms=100))
        engine.submit(request_for(tiny_model, "patient", num_inference_steps=3))
        while not tape.of("waits", Failed):
            engine.step()
            time.sleep(0.01)
        engine.drain()
        for name in ("runs", "waits"):
            assert isinstance(tape.of(name, Failed)[0].error, DeadlineExceeded)
            assert not tape.of(name, Finished)
        assert len(tape.images("patient")) == 1
        assert engine.tracker.total.expired == 2


def test_a_refusal_says_when_there_is_room_again(tiny_model: LoadedModel) -> None:
    with drive(tiny_model, max_rows=2, queue_limit=1) as (engine, tape):
        engine.submit(request_for(tiny_model, "a"))
        engine.step()
        engine.submit(request_for(tiny_model, "b"))
        engine.submit(request_for(tiny_model, "c"))
        (refused,) = tape.of("c", Failed)
        assert isinstance(refused.error, Overloaded)
        assert refused.error.retry_after is not None
        assert refused.error.retry_after > 0
        engine.drain()


def test_a_lost_device_ends_the_engine(tiny_model: LoadedModel) -> None:
    def before(_: torch.Tensor) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with drive(with_unet(tiny_model, before)) as (engine, _):
        engine.submit(request_for(tiny_model, "x"))
        with pytest.raises(DeviceLost):
            engine.step()


def test_the_estimates_are_right_within_a_quarter_at_the_median(tiny_model: LoadedModel) -> None:
    told: dict[str, tuple[float, float, float]] = {}
    begun: dict[str, float] = {}
    done: dict[str, float] = {}

    def emit(event: Any) -> None:
        match event:
            case Accepted():
                told[event.request_id] = (time.perf_counter(), event.seconds_to_start, event.seconds_to_finish)
            case Progress(position=0) if event.step == 1:
                begun[event.request_id] = time.perf_counter()
            case Finished():
                done[event.request_id] = time.perf_counter()

    def slow(sample: torch.Tensor) -> None:
        # So that what others do on this machine matters little.
        time.sleep(0.015 + 0.004 * len(sample))

    # More comes than can be made: the queue grows, and drains at the end.
    rng = random.Random(1)
    model = with_unet(tiny_model, slow)
    engine = engine_of(model, emit, max_rows=8)
    try:
        warm_up(engine)
        for i in range(60):
            steps, images = rng.choice((10, 20, 30)), rng.choice((1, 1, 2))
            engine.submit(request_for(model, str(i), sampler="ddim", num_inference_steps=steps, num_images=images))
            for _ in range(rng.randrange(12)):
                engine.step()
        engine.drain()
    finally:
        engine.close()
    finish = [abs(said - (done[name] - at)) / (done[name] - at) for name, (at, _, said) in told.items()]
    start = [abs(said - (begun[name] - at)) / (begun[name] - at) for name, (at, said, _) in told.items() if said > 0.2]
    assert len(finish) == 60
    assert len(start) > 20
    assert median(finish) <= 0.25
    assert median(start) <= 0.25


class CountingMemory(CpuMemory):
    """Counts how often it meters."""

    def __init__(self) -> None:
        super().__init__()
        self.metered_calls = 0

    @contextmanager
    def meter(self) -> Iterator[Meter]:
        self.metered_calls += 1
        with super().meter() as meter:
            yield meter


def test_steps_are_metered_only_while_there_is_something_to_learn(tiny_controlled: LoadedModel) -> None:
    memory = CountingMemory()
    hint = Inputs(hints=(np.full((64, 64, 3), 90, dtype=np.uint8),))
    always = request_for(
        tiny_controlled, "controlled", hint, controls=({"type": "canny"},), num_inference_steps=20, sampler="ddim"
    )
    with drive(tiny_controlled, max_rows=8, memory=memory) as (engine, tape):
        # Never a step without the net, so the UNet's own bytes at this size stay unknown.
        engine.submit(always)
        engine.drain()
        assert memory.metered_calls == 1  # the picture's decoding
        for name in ("bare", "bare again"):
            engine.submit(request_for(tiny_controlled, name, num_inference_steps=5, sampler="ddim"))
            engine.drain()
        assert memory.metered_calls == 2
        engine.submit(replace(always, id="controlled again"))
        engine.drain()
    assert memory.metered_calls == 3
    assert all(tape.of(name, Finished) for name in ("controlled", "bare", "bare again", "controlled again"))

"""What LoRAs and references take in calls is never more than is planned, and goes with the last row."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from deployments.engine.device.memory import CpuMemory
from deployments.engine.ip_adapter.reference import Reference
from deployments.engine.lora.rows.factors import Factors
from deployments.engine.lora.rows.lora_set import LoraSet, fit_adapter
from deployments.engine.models.adaptation import adapted_base
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.padding import padded_size
from deployments.engine.protocol.counters import Counters
from deployments.engine.protocol.request import Bucket
from deployments.engine.row import Row
from deployments.engine.scheduling.admission import Admission
from deployments.engine.stack_size import size_of_stacks
from deployments.engine.steps import denoise
from deployments.engine.steps import stepper as stepper_module
from deployments.engine.steps.arena import Arena
from deployments.engine.steps.call import CallPlanner
from deployments.engine.steps.prepare import begin_row, prepare, with_model_facts
from deployments.engine.steps.stepper import StepIssued, Stepper
from tests.deployments.engine.harness import request_for
from tests.deployments.engine.lora.rows.loras import LINEAR, TinyLora
from tests.deployments.engine.lora.rows.test_factors import update_of

SIZES: Final = (1, 2, 4, 8)
STEPS: Final = 4

FEW, MANY = TinyLora("few", 1, 2, LINEAR), TinyLora("many", 2, 8, ("to_q", "conv1"))

Made = Callable[..., Row]


@pytest.fixture
def made(tiny_model: LoadedModel) -> Made:
    """Returns a row with LoRAs and a reference of so many tokens."""

    def make(loras: LoraSet | None = None, tokens: int = 0, guided: bool = True, **asked: Any) -> Row:
        scale = 4.0 if guided else 1.0
        request = request_for(tiny_model, "x", num_inference_steps=STEPS, guidance_scale=scale, sampler="ddim", **asked)
        row = begin_row(prepare(with_model_facts(request, tiny_model), tiny_model, 0.0), 0, tiny_model)
        row.loras = loras
        keys = torch.zeros(tokens, row.prompt.keys.shape[1])
        row.reference = Reference(keys, keys.clone(), 0.0, 1.0) if tokens else None
        return row

    return make


@pytest.fixture
def few(tiny_model: LoadedModel) -> LoraSet:
    return fit_adapter(FEW.adapter(), FEW.use(), adapted_base(tiny_model))


@pytest.fixture
def many(tiny_model: LoadedModel) -> LoraSet:
    """It changes other layers too, and one of them by a gain."""
    found = fit_adapter(MANY.adapter(), MANY.use(), adapted_base(tiny_model))
    path, layer = next((path, each) for path, each in adapted_base(tiny_model).unet.items() if path.endswith("conv2"))
    return LoraSet(found.uses, {**found.unet, path: update_of(layer, 3, gain=True)}, found.projections, found.text)


def stacks_of(arena: Arena) -> list[Tensor]:
    """All that the arena keeps of the latest step beside its slots."""
    found = [tensor for stack in arena.updates._latest.values() for each in stack.values() for tensor in each.tensors]
    calls = [] if arena.latest.call is None else [arena.latest.call.whole, arena.latest.call.shallow]
    references = [call.references for call in calls if call is not None and call.references is not None]
    return [*found, *(tensor for each in references for tensor in (each.keys, each.bias))]


def bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def most_bytes(model: LoadedModel, rows: Sequence[Row]) -> int:
    """The most that is kept at any of the rows' steps; they advance, but compute nothing."""
    arena, most = Arena(model, rows[0].request.bucket, SIZES[-1]), 0
    for row in rows:
        arena.add(row)
    planner = CallPlanner(arena, SIZES)
    for _ in range(STEPS):
        planner.plan(model, rows)
        most = max(most, bytes_of(stacks_of(arena)))
        for row in rows:
            row.step += 1
    return most


def planned_bytes(rows: Sequence[Row]) -> int:
    is_exact = any(row.request.params.exact for row in rows)
    entries = SIZES[-1] if is_exact else padded_size(sum(row.request.unet_rows for row in rows), SIZES)
    return size_of_stacks(rows).bytes(entries)


def test_no_mix_of_rows_takes_more_than_is_planned(
    tiny_model: LoadedModel, made: Made, few: LoraSet, many: LoraSet
) -> None:
    mixes: dict[str, list[Row]] = {
        "plain ones": [made(), made()],
        "one that stands apart": [made(many), made(), made()],
        "a low rank beside a high one": [made(few), made(many), made(few, guided=False)],
        "guided ones": [made(few), made(many), made()],
        "equal ones": [made(many), made(many, guided=False)],
        "some to be exact": [made(few), made(few, exact=True)],
        "a short reference beside a long one": [made(tokens=4), made(tokens=48), made()],
        "a reference to be exact": [made(tokens=4, exact=True)],
        "both": [made(few, tokens=16), made(many, tokens=3)],
        "calls of two kinds": [made(few, deep_cache=2), made(many, deep_cache=3), made(guided=False)],
        "equal ones in calls of two kinds": [made(many, deep_cache=2), made(many, deep_cache=3)],
        "guidance for a while": [made(few, guidance_interval=(0.3, 0.7)), made(many)],
    }
    for name, rows in mixes.items():
        taken = most_bytes(tiny_model, rows)
        assert (taken > 0) == (name != "plain ones"), name
        assert taken <= planned_bytes(rows), name


def test_what_is_planned_is_what_a_crowd_of_different_ranks_and_lengths_takes(
    tiny_model: LoadedModel, made: Made, few: LoraSet, many: LoraSet
) -> None:
    for rows in (
        [made(few, tokens=16, guided=False), made(many, tokens=3), made(guided=False)],
        [made(few), made(many), made(), made()],
        [made(many), made(many)],
        [made(few, tokens=5, exact=True)],
    ):
        assert most_bytes(tiny_model, rows) == planned_bytes(rows)


def steps_of(stepper: Stepper, model: LoadedModel, rows: list[Row]) -> list[int]:
    """Steps `rows`, and returns the number of those that went together each time."""
    outcomes = stepper.step(model, rows[0].request.bucket, rows, Counters())
    return [len(outcome.rows) for outcome in outcomes if isinstance(outcome, StepIssued)]


@pytest.fixture
def stepper() -> Stepper:
    admission = Admission(16, SIZES, CpuMemory(), 1)
    return Stepper(admission.plan, admission.costs, CpuMemory(), SIZES)


def test_nothing_is_kept_of_the_latest_call_when_no_row_is_left(
    tiny_model: LoadedModel, made: Made, few: LoraSet, many: LoraSet, stepper: Stepper
) -> None:
    rows = [made(few), made(many, tokens=16)]
    steps_of(stepper, tiny_model, rows)
    assert rows[0].slot is not None
    arena = rows[0].slot.arena
    kept = [weakref.ref(each) for stack in arena.updates._latest.values() for each in stack.values()]
    rows[0].leave_slot()
    assert stacks_of(arena)
    rows[1].leave_slot()
    assert not stacks_of(arena)
    assert [each() for each in kept] == [None] * len(kept)


def test_the_stacks_of_a_call_that_did_not_fit_are_gone_when_its_halves_run(
    tiny_model: LoadedModel,
    made: Made,
    few: LoraSet,
    many: LoraSet,
    stepper: Stepper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: list[weakref.ref[Factors]] = []
    denoise_step = denoise.denoise_step

    def full_for_two(model: LoadedModel, arena: Arena, call: Any, rows: Sequence[Row], captured: Any) -> Any:
        if len(rows) > 1:
            failed.extend(weakref.ref(each) for each in call.whole.updates.values())
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert [each() for each in failed] == [None] * len(failed)
        return denoise_step(model, arena, call, rows, captured)

    monkeypatch.setattr(stepper_module, "denoise_step", full_for_two)
    # What catches log records here would keep the traceback.
    monkeypatch.setattr(stepper_module.log, "exception", lambda *_: None)
    assert steps_of(stepper, tiny_model, [made(few), made(many)]) == [1, 1]
    assert failed


def test_what_references_take_is_not_learnt_as_what_plain_calls_take(
    tiny_model: LoadedModel, made: Made, stepper: Stepper
) -> None:
    row = made()
    bucket: Bucket = row.request.bucket
    steps_of(stepper, tiny_model, [made(tokens=16)])
    assert not stepper._plan.has_measured("denoise", bucket, 2)
    steps_of(stepper, tiny_model, [row])
    assert stepper._plan.has_measured("denoise", bucket, 2)

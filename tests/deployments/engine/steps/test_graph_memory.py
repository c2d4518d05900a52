"""Captured steps never take memory that calls need: on any card, weights, pools, calls and decodings stay in budget.

The figures are Stable Diffusion 1.5's in fp16 at 512 x 512 and 2.1's at 768 x 768, as `python -m bench.gpu.footprint`
counts them; a simulated card stands for the device, and refuses what it has no room for.
"""

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import pytest
import torch
from torch import Tensor

from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.counters import Counters
from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.admission import Admission
from deployments.engine.scheduling.device import Meter
from deployments.engine.scheduling.memory_plan import GIB
from deployments.engine.steps.denoise import Step
from deployments.engine.steps.prepare import begin_row, prepare, with_model_facts
from deployments.engine.steps.stepper import Stepper
from tests.deployments.engine.harness import request_for

MIB: Final = 2**20
SIZES: Final = tuple(range(2, 33, 2))
DECODE_BATCH: Final = 4
WEIGHTS: Final = 2_130_000_000
ROW_AND_DECODE: Final = {512: (65 * MIB, 384 * MIB), 768: (146 * MIB, 864 * MIB)}
FIXED: Final = 40 * MIB
CARDS: Final = (6, 8, 16, 24)


class SimulatedCard:
    """A card that has `budget` bytes, `held` of them taken for good and `pools` by captured steps."""

    is_metering_free = True

    def __init__(self, budget: int, held: int) -> None:
        self.budget, self.held, self.pools, self.most = budget, held, 0, 0

    def held_bytes(self, counted: int) -> int:
        return max(counted, self.held)

    def unused_bytes(self) -> int:
        return self.pools

    @contextmanager
    def meter(self) -> Iterator[Meter]:
        yield Meter()

    def release(self) -> None: ...

    def take(self, more: int) -> None:
        """Takes `more` bytes for a moment."""
        self.most = max(self.most, self.held + self.pools + more)
        if self.most > self.budget:
            raise torch.OutOfMemoryError("CUDA out of memory.")


class SimulatedCapture:
    """Captures into a pool of `card` that grows to the largest call; smaller ones, and other prompts, add a little."""

    def __init__(self, card: SimulatedCard, row: int) -> None:
        self._card, self._row, self._pool = card, row, 0
        self.sizes: list[int] = []

    def __call__(self, step: Step) -> Step:
        assert isinstance(step, partial)
        size = step.args[2].whole.size
        needed = FIXED + size * self._row
        self._card.take(needed)  # the calls before the capture
        grown = max(needed - self._pool, 2 * MIB)
        self._card.take(grown)
        self._pool += grown
        self._card.pools += grown
        self.sizes.append(size)

        def replay() -> tuple[Tensor, Tensor]:
            raise AssertionError("nothing is computed here")

        weakref.finalize(replay, self._free, grown)
        return replay

    def _free(self, grown: int) -> None:
        self._card.pools -= grown


def admission_on(card: SimulatedCard, bucket: Bucket, side: int) -> Admission:
    """What an engine knows after its warm-up has measured two calls and a decoding."""
    admission = Admission(16, SIZES, card, DECODE_BATCH)
    admission.set_weight_bytes(WEIGHTS)
    row, decode = ROW_AND_DECODE[side]
    for rows in (2, 4):
        admission.plan.record_peak("denoise", bucket, rows, FIXED + rows * row)
    admission.plan.record_peak("decode", bucket, DECODE_BATCH, DECODE_BATCH * decode)
    return admission


def capture(model: LoadedModel, card: SimulatedCard, side: int) -> tuple[Admission, Stepper, list[int]]:
    request = with_model_facts(request_for(model, "x"), model)
    admission = admission_on(card, request.bucket, side)
    stepper = Stepper(admission.plan, admission.costs, card, SIZES)
    made = SimulatedCapture(card, ROW_AND_DECODE[side][0])
    stepper._new_capture = lambda: made
    row = begin_row(prepare(request, model, 0.0), 0, model)
    stepper.capture(model, row, partial(admission.may_capture, request.bucket))
    return admission, stepper, made.sizes


@pytest.mark.parametrize(("gib", "side"), list(itertools.product(CARDS, ROW_AND_DECODE)))
def test_what_is_captured_leaves_room_for_every_call_and_decoding(gib: int, side: int, tiny_model: LoadedModel) -> None:
    card = SimulatedCard(gib * GIB, WEIGHTS)
    admission, _, sizes = capture(tiny_model, card, side)
    bucket = request_for(tiny_model, "x").bucket
    row, decode = ROW_AND_DECODE[side]
    assert admission.plan.pool_bytes() == card.pools
    rows = admission.plan.rows(bucket, WEIGHTS, decode_batch=DECODE_BATCH)
    assert rows >= max(sizes, default=0), "what is captured can be used"
    # Not even if the steps run as they are, beside their own pool and the largest decoding.
    card.take(FIXED + rows * row + DECODE_BATCH * decode)
    assert card.most <= card.budget


@pytest.mark.parametrize("side", ROW_AND_DECODE)
def test_a_smaller_card_chooses_a_smaller_largest_size(side: int, tiny_model: LoadedModel) -> None:
    largest = [max(capture(tiny_model, SimulatedCard(gib * GIB, WEIGHTS), side)[2], default=0) for gib in CARDS]
    assert largest == sorted(largest)
    assert largest[0] < largest[-1] == SIZES[-1]


def test_sizes_below_the_largest_are_all_captured(tiny_model: LoadedModel) -> None:
    _, _, sizes = capture(tiny_model, SimulatedCard(8 * GIB, WEIGHTS), 768)
    assert sorted(set(sizes)) == list(range(2, max(sizes) + 1, 2))


def test_a_pool_that_grows_beyond_what_was_expected_stops_further_captures(tiny_model: LoadedModel) -> None:
    card = SimulatedCard(6 * GIB, WEIGHTS)
    request = with_model_facts(request_for(tiny_model, "x"), tiny_model)
    admission = admission_on(card, request.bucket, 512)
    assert admission.may_capture(request.bucket, 8)
    admission.plan.record_pool(request.bucket, 3 * GIB)
    assert not admission.may_capture(request.bucket, 8)


def test_memory_that_runs_out_in_a_capture_leaves_smaller_sizes_to_be_captured(tiny_model: LoadedModel) -> None:
    card = SimulatedCard(24 * GIB, WEIGHTS)
    request = with_model_facts(request_for(tiny_model, "x"), tiny_model)
    admission = admission_on(card, request.bucket, 512)
    stepper = Stepper(admission.plan, admission.costs, card, SIZES)
    made = SimulatedCapture(card, ROW_AND_DECODE[512][0])

    def fails_for_many(step: Step) -> Step:
        assert isinstance(step, partial)
        if step.args[2].whole.size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return made(step)

    stepper._new_capture = lambda: fails_for_many
    stepper.capture(tiny_model, begin_row(prepare(request, tiny_model, 0.0), 0, tiny_model), lambda _: True)
    assert max(made.sizes) == 8


def test_an_evicted_model_gives_its_pool_back_and_others_keep_theirs(tiny_model: LoadedModel) -> None:
    card = SimulatedCard(16 * GIB, WEIGHTS)
    admission, stepper, _ = capture(tiny_model, card, 512)
    admission.plan.record_pool(Bucket("other", 64, 64), 123)
    assert card.pools > GIB
    stepper.release_unused("other model")
    assert card.pools == admission.plan.pool_bytes() - 123 > GIB
    stepper.release_unused(tiny_model.spec.name)
    assert card.pools == 0
    assert admission.plan.pool_bytes() == 123
    stepper.release_unused(tiny_model.spec.name)


def test_what_a_captured_step_takes_is_not_learnt(tiny_model: LoadedModel) -> None:
    """It allocates nothing: the plan would forget what a call takes that is not captured."""
    card = SimulatedCard(16 * GIB, WEIGHTS)
    request = with_model_facts(request_for(tiny_model, "x"), tiny_model)
    admission = admission_on(card, request.bucket, 512)
    stepper = Stepper(admission.plan, admission.costs, card, SIZES)
    stepper._new_capture = lambda: lambda step: step
    state = prepare(request, tiny_model, 0.0)
    stepper.capture(tiny_model, begin_row(state, 0, tiny_model), lambda _: True)
    before = admission.plan.figures()
    list(stepper.step(tiny_model, request.bucket, [begin_row(state, 0, tiny_model)], Counters()))
    assert admission.plan.figures() == before

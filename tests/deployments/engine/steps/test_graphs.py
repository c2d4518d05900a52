"""Captured steps give the bits of steps that run as they are, whatever they were captured with."""

from typing import Any, Final

import pytest
import torch
from torch import Tensor

from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.steps.arena import Arena
from deployments.engine.steps.call import CallPlanner
from deployments.engine.steps.denoise import Step, denoise_step
from deployments.engine.steps.graphs import StepGraphs
from tests.deployments.engine.harness import request_for
from tests.deployments.engine.steps.reference_step import step_rows
from tests.deployments.engine.steps.test_denoise import Twins
from tests.deployments.engine.test_engine import CROWD

SIZES: Final = (2, 4, 8, 16)
LENGTHS: Final = (77, 308)


class Recorder:
    """Stands for CUDA's capture: a replay runs the same step on the same tensors, and answers into the same ones."""

    def __init__(self, most: int = 100) -> None:
        self.captures = self.replays = 0
        self._most = most

    def __call__(self, step: Step) -> Step:
        if self.captures == self._most:
            raise RuntimeError("injected: this cannot be captured")
        self.captures += 1
        answers: tuple[Tensor, Tensor] = step()

        def replay() -> tuple[Tensor, Tensor]:
            self.replays += 1
            for answer, new in zip(answers, step(), strict=True):
                answer.copy_(new)
            return answers

        return replay


def capture_steps(model: LoadedModel, recorder: Recorder, lengths: tuple[int, ...] = LENGTHS) -> tuple[Arena, Any]:
    row = Twins(model, request_for(model, "warm-up")).ours
    arena = Arena(model, row.request.bucket, SIZES[-1])
    arena.add(row)
    graphs = StepGraphs(arena)
    graphs.capture(model, row, SIZES, lengths, recorder)
    row.leave_slot()
    return arena, graphs


def test_a_crowd_in_captured_steps_has_the_bits_of_the_plain_step(tiny_model: LoadedModel) -> None:
    recorder = Recorder()
    arena, graphs = capture_steps(tiny_model, recorder)
    assert recorder.captures == len(graphs) == len(SIZES) * len(LENGTHS)
    planner = CallPlanner(arena, SIZES, LENGTHS)
    # Without the long prompt: it is repeated to another length in the plain step.
    waiting = [Twins(tiny_model, request_for(tiny_model, f"r{i}", **asked)) for i, asked in enumerate(CROWD[:7])]
    running: list[Twins] = []
    steps = 0
    while waiting or running:
        if waiting:
            running.append(waiting.pop())
            arena.add(running[-1].ours)
        ours, theirs = [twins.ours for twins in running], [twins.theirs for twins in running]
        call = planner.plan(tiny_model, ours)
        result = denoise_step(tiny_model, arena, call, ours, graphs.find(call))
        assert len(result.scaled) == len(result.out) == len(ours)
        step_rows(tiny_model, theirs, SIZES)
        steps += 1
        assert all(twins.are_equal for twins in running)
        for twins in [twins for twins in running if twins.ours.is_done]:
            running.remove(twins)
            twins.ours.leave_slot()
    assert recorder.replays == steps
    assert recorder.captures == len(graphs)


@pytest.mark.parametrize("asked", [{"deep_cache": 2}, {"prompt": "word " * 90}])
def test_steps_of_other_kinds_are_not_taken_for_captured_ones(asked: dict[str, Any], tiny_model: LoadedModel) -> None:
    arena, graphs = capture_steps(tiny_model, Recorder(), (77,))
    row = Twins(tiny_model, request_for(tiny_model, "x", **asked)).ours
    arena.add(row)
    assert graphs.find(CallPlanner(arena, SIZES, LENGTHS).plan(tiny_model, [row])) is None


def test_a_size_that_cannot_be_captured_costs_it_and_smaller_ones(tiny_model: LoadedModel) -> None:
    arena, graphs = capture_steps(tiny_model, Recorder(most=2), (77,))
    assert len(graphs) == 2
    twins = Twins(tiny_model, request_for(tiny_model, "x"))
    arena.add(twins.ours)
    call = CallPlanner(arena, SIZES).plan(tiny_model, [twins.ours])
    assert graphs.find(call) is None
    denoise_step(tiny_model, arena, call, [twins.ours])
    with torch.inference_mode():
        step_rows(tiny_model, [twins.theirs], SIZES)
    assert twins.are_equal

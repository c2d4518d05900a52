"""A training's time begins with it, and is all that it takes; whoever cancels it waits for no more than a batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.protocol.errors import Cancelled, InvalidParameter
from deployments.engine.protocol.spec import ModelSpec
from deployments.training import checkpoint
from deployments.training.lora import clock as clocks
from deployments.training.lora import lessons, pictures
from deployments.training.lora.clock import TrainingClock
from deployments.training.lora.dataset import read_examples
from deployments.training.lora.pictures import PictureMaker
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingLimits, TrainingSettings
from deployments.training.lora.training_run import train_lora
from tests.deployments.training.lora.learning.test_trainer import settings

LIMITS = TrainingLimits()
ASKED: dict[str, Any] = {"steps": 4, "evaluation_prompts": ("a {trigger}", "red"), "unrelated_prompts": ("a", "cat")}


class Clock:
    """A clock for `time.monotonic` that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(clocks, "time", made)
    return made


@pytest.fixture(autouse=True)
def _one_picture_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_BATCH_PIXELS", 1)


def train(run: RunFolder, spec: ModelSpec, source: Path, asked: TrainingSettings) -> Any:
    return train_lora(run, read_examples(source, asked, LIMITS), asked, spec, LIMITS, device="cpu")


def after_each_batch(monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None]) -> list[int]:
    """Calls `do` with the number of each call of the pipeline, from 1; returns what will be their numbers."""
    numbers: list[int] = []
    make = PictureMaker.__init__

    def init(self: PictureMaker, *given: Any, **named: Any) -> None:
        make(self, *given, **named)
        pipeline = self._pipeline

        def call(*prompts: Any, **more: Any) -> Any:
            made = pipeline(*prompts, **more)
            numbers.append(len(numbers) + 1)
            do(numbers[-1])
            return made

        self._pipeline = call

    monkeypatch.setattr(PictureMaker, "__init__", init)
    return numbers


PRIOR = 4
"""Batches of pictures that are to stay, in two sizes."""


@pytest.mark.parametrize(
    ("batch", "stage", "steps"), [(2, "encoding", 0), (PRIOR + 1, "training", 2), (PRIOR + 6, "evaluating", 4)]
)
def test_between_two_batches_it_can_be_cancelled_and_goes_on_later(
    batch: int,
    stage: str,
    steps: int,
    spec: ModelSpec,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, asked = RunFolder(tmp_path / "run"), settings(**ASKED, sample_prompts=("a", "b"), sample_every=2)
    calls = after_each_batch(monkeypatch, lambda number: run.ask_to_cancel() if number == batch else None)
    with pytest.raises(Cancelled):
        train(run, spec, source, asked)
    assert len(calls) == batch
    progress = run.read_progress()
    assert (progress.state, progress.stage) == ("cancelled", stage)
    kept = checkpoint.load(run.checkpoint)
    assert steps == (kept["course"]["step"] if kept else 0)
    monkeypatch.undo()
    (run.path / "cancel").unlink(missing_ok=True)
    train(run, spec, source, asked)
    assert [point.step for point in run.read_losses()] == [1, 2, 3, 4]


@pytest.mark.parametrize("part", ["encode_prompts", "read_pictures", "encode_pictures"])
def test_what_is_encoded_can_be_cancelled(
    part: str, spec: ModelSpec, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = RunFolder(tmp_path / "run"), settings(**ASKED)
    begin = getattr(lessons, part)

    def cancel_and_begin(*given: Any) -> Any:
        run.ask_to_cancel()
        begin(*given)
        raise AssertionError("it was not cancelled")

    monkeypatch.setattr(lessons, part, cancel_and_begin)
    with pytest.raises(Cancelled):
        train(run, spec, source, asked)


def test_what_is_made_before_the_first_step_counts(
    spec: ModelSpec, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hand: Clock
) -> None:
    run, asked = RunFolder(tmp_path / "run"), settings(**ASKED, max_minutes=3.0)

    def wait(number: int) -> None:
        hand.now += 61

    calls = after_each_batch(monkeypatch, wait)
    with pytest.raises(InvalidParameter, match="over before the first step") as refused:
        train(run, spec, source, asked)
    assert refused.value.field == "max_minutes"
    assert len(calls) == 3
    assert run.read_progress().seconds > 100


def test_steps_and_samples_end_when_the_time_is_over_and_judging_after_its_share(
    spec: ModelSpec, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hand: Clock
) -> None:
    run = RunFolder(tmp_path / "run")
    asked = settings(**ASKED, max_minutes=8.0, sample_prompts=("a", "b", "c"), sample_every=2)

    def wait(number: int) -> None:
        # Two minutes for the two samples, and one for each picture of what is judged.
        hand.now += 120 if PRIOR < number <= PRIOR + 2 else 60

    after_each_batch(monkeypatch, wait)
    found = train(run, spec, source, asked)
    progress = run.read_progress()
    assert (progress.step, progress.ended, progress.seconds) == (2, "the 8 minutes are over", 8 * 60)
    assert [path.name for path in run.list_samples()] == ["000002-00.png", "000002-01.png"]
    # A quarter of eight minutes: one prompt with the trigger in two pictures, and no other is begun.
    assert (found.prompts, found.pictures, found.left_out) == (("a cup",), 1, 3)
    assert json.loads(run.evaluation.read_text())["left_out"] == 3
    assert run.sheet.is_file()


def test_the_time_goes_on_where_it_was(tmp_path: Path, hand: Clock) -> None:
    run = RunFolder(tmp_path)
    run.change_progress(seconds=100.0)
    clock = TrainingClock(run, 2)
    hand.now += 19
    assert not clock.is_over
    hand.now += 1
    assert clock.is_over


def test_without_a_limit_on_time_all_prompts_of_both_kinds_are_judged(
    spec: ModelSpec, source: Path, tmp_path: Path
) -> None:
    found = train(RunFolder(tmp_path / "run"), spec, source, settings(**ASKED))
    assert (found.prompts, found.left_out) == (("a cup", "red", "a", "cat"), 0)
    assert found.other_seed is not None

"""The runner: so many trainings at once, and a process that dies or does not start leaves a training that says so."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.training.lora.run_folder import RunFolder, TrainingProgress
from serve_app.trainings.runner import TrainingProcess, TrainingRunner


class Scripted:
    """A process that ends when the test says so, with a number."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.is_terminated = False

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.code, self.is_terminated = -15, True


def runs(folder: Path, count: int) -> list[RunFolder]:
    for number in range(count):
        (folder / str(number)).mkdir()
    return [RunFolder(folder / str(number)) for number in range(count)]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_more_run_at_once_than_may_and_the_next_begins_when_one_ends(tmp_path: Path) -> None:
    begun: list[Scripted] = []

    def launch(_: Path) -> TrainingProcess:
        begun.append(Scripted())
        return begun[-1]

    runner, three = TrainingRunner(launch, 2), runs(tmp_path, 3)
    for run in three:
        runner.start(run)
    until(lambda: len(begun) == 2)
    time.sleep(0.7)
    assert len(begun) == 2
    assert all(run.silent_for() < 5 for run in three)
    begun[0].code = 0
    until(lambda: len(begun) == 3)
    runner.stop()
    assert begun[1].is_terminated
    assert begun[2].is_terminated


def test_a_process_that_dies_leaves_an_interrupted_training(tmp_path: Path) -> None:
    (run,), process = runs(tmp_path, 1), Scripted()
    runner = TrainingRunner(lambda _: process)
    runner.start(run)
    run.change_progress(state="running", step=7)
    process.code = -9
    until(lambda: run.read_progress().state == "interrupted")
    assert run.read_progress().step == 7
    runner.stop()


def test_what_cannot_be_started_has_failed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def launch(_: Path) -> TrainingProcess:
        raise OSError("no more processes")

    (run,) = runs(tmp_path, 1)
    runner = TrainingRunner(launch)
    runner.start(run)
    until(lambda: run.read_progress().state == "failed")
    assert "could not be started" in caplog.text
    runner.stop()


def test_one_that_is_cancelled_while_it_waits_for_resources_ends_at_once(tmp_path: Path) -> None:
    (run,), process = runs(tmp_path, 1), Scripted()
    runner = TrainingRunner(lambda _: process)
    runner.start(run)
    time.sleep(0.2)
    run.ask_to_cancel()
    until(lambda: run.read_progress().state == "cancelled")
    assert process.is_terminated
    runner.stop()


def test_one_that_is_cancelled_while_it_runs_ends_by_itself(tmp_path: Path) -> None:
    (run,), process = runs(tmp_path, 1), Scripted()
    runner = TrainingRunner(lambda _: process)
    runner.start(run)
    run.change_progress(state="running")
    run.ask_to_cancel()
    time.sleep(1.2)
    assert not process.is_terminated
    run.change_progress(state="cancelled", step=4)
    process.code = 1
    until(lambda: not any(thread.is_alive() for thread in runner._threads))
    assert run.read_progress() == replace(TrainingProgress(), state="cancelled", step=4)


def test_a_process_that_ends_says_nothing_of_a_training_that_another_goes_on_with(tmp_path: Path) -> None:
    (run,) = runs(tmp_path, 1)
    first, second = Scripted(), Scripted()
    stalled, later = TrainingRunner(lambda _: first), TrainingRunner(lambda _: second)
    stalled.start(run)
    later.start(run)
    first.code = 1
    until(lambda: not any(thread.is_alive() for thread in stalled._threads))
    assert run.read_progress().state == "queued"
    run.change_progress(state="running")
    with run.held():
        second.code = 1
        until(lambda: not any(thread.is_alive() for thread in later._threads))
    assert run.read_progress().state == "running"


def test_the_checkpoint_of_one_that_has_succeeded_is_removed(tmp_path: Path) -> None:
    runner = TrainingRunner(lambda _: process)
    for run, state in zip(runs(tmp_path, 2), ("succeeded", "failed"), strict=True):
        process = Scripted()
        run.checkpoint.touch()
        runner.start(run)
        run.change_progress(state=state)
        process.code = 0
        until(lambda: not any(thread.is_alive() for thread in runner._threads))
        assert run.checkpoint.exists() == (state == "failed")

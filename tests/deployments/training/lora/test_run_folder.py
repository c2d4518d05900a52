"""A training's folder: what was asked of it is not lost, one process works on it, and others read whole files only."""

import fcntl
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments.engine.protocol.errors import Cancelled, InvalidParameter
from deployments.training.lora.run_folder import LossPoint, RunFolder
from deployments.training.lora.settings import TrainingSettings
from deployments.whole_files import replace_text, replaced

ASKED = TrainingSettings.model_validate({"name": "lamp", "trigger": "zorb", "model_name": "tiny"})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@contextmanager
def held_elsewhere(run: RunFolder) -> Iterator[None]:
    with (run.path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_training_that_was_cancelled_before_it_began_does_not_begin(run: RunFolder) -> None:
    run.begin(ASKED)
    run.ask_to_cancel()
    with pytest.raises(Cancelled):
        run.begin(ASKED)
    assert run.is_cancelled
    run.forget_cancel()
    run.begin(ASKED)


def test_one_works_on_a_training_at_a_time(run: RunFolder) -> None:
    run.change_progress(state="running", step=3)
    with held_elsewhere(run), pytest.raises(InvalidParameter, match="another process"), run.recorded():
        pass
    assert (run.read_progress().state, run.read_progress().step) == ("running", 3)
    with run.recorded():
        pass
    assert run.read_progress().state == "succeeded"


def test_what_is_not_finite_is_not_read(run: RunFolder) -> None:
    run.change_progress(loss=math.nan, validation_loss=math.inf, step=5)
    for point in (LossPoint(1, 0.5), LossPoint(2, math.nan), LossPoint(3, 0.25, math.nan, -math.inf)):
        run.append_loss(point)
    run.evaluation.write_text(json.dumps({"drift": math.nan, "pictures": 3}))
    progress = run.read_progress()
    assert (progress.loss, progress.validation_loss, progress.step) == (None, None, 5)
    assert run.read_losses() == [LossPoint(1, 0.5), LossPoint(3, 0.25)]
    assert run.read_evaluation() == {"drift": None, "pictures": 3}


def test_samples_are_listed_in_the_order_in_which_they_are_made(run: RunFolder) -> None:
    run.begin(ASKED)
    made = [run.sample(step, number) for step in (200, 400, 20_000) for number in range(64)]
    for path in reversed(made):
        path.touch()
    assert run.list_samples() == made


def test_nobody_sees_a_file_before_it_is_whole(run: RunFolder) -> None:
    run.begin(ASKED)
    place = run.sample(1, 0)

    def write_half() -> None:
        with replaced(place) as neighbour:
            neighbour.write_bytes(b"half")
            assert run.list_samples() == []
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert list(run.samples.iterdir()) == []
    with replaced(place) as one, replaced(place) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert place.read_text() == "one"
    replace_text(place, "new")
    assert [place.read_text(), list(run.samples.iterdir())] == ["new", [place]]


def test_what_only_a_training_that_goes_on_needs_can_be_dropped(run: RunFolder) -> None:
    kept = [run.lora, run.sheet, run.evaluation]
    for path in (*kept, run.checkpoint, run.prior_pictures(64, 64)):
        path.touch()
    run.drop_checkpoint()
    assert sorted(run.path.iterdir()) == sorted(kept)

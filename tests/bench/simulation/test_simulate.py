"""The simulation's command: only certain results are reused, and a simulator that is off exits with 1."""

import json
from pathlib import Path

import pytest

import bench.simulation.__main__ as simulate
from bench.simulation.cases import Case

TINY = [Case(gpus=1, hours=0.02), Case(gpus=1, hours=0.02, engine="whole"), Case(gpus=1, hours=0.02, policy="ray")]
FILLED = [Case(gpus=1, hours=0.02, settings={"target_fill": fill}) for fill in (0.5, 0.9)]


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(simulate, "STUDIES", {"classes": lambda: TINY})


def at_commit(monkeypatch: pytest.MonkeyPatch, commit: str) -> None:
    monkeypatch.setattr(simulate, "card", lambda device: {"hardware": {}, "versions": {}, "commit": commit})


def played(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The cases that were simulated, and the report's last line is JSON of them all."""
    lines = capsys.readouterr().out.splitlines()
    assert len(json.loads(lines[-1])["reports"]["classes"]) == len(TINY)
    return [line for line in lines if " of " in line and ": " in line]


def test_what_was_done_at_a_commit_is_not_done_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_commit(monkeypatch, "abc")
    assert simulate.main(["--only", "classes", "--processes", "2"]) == 0
    assert len(played(capsys)) == len(TINY)
    assert simulate.main(["--only", "classes"]) == 0
    assert played(capsys) == []


@pytest.mark.parametrize("commit", ["def", "abc+"])
def test_what_other_code_did_is_done_again(
    commit: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_commit(monkeypatch, commit)
    simulate.main(["--only", "classes"])
    played(capsys)
    at_commit(monkeypatch, "abc" if commit == "def" else commit)
    simulate.main(["--only", "classes"])
    assert len(played(capsys)) == len(TINY)


def test_a_study_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simulate.main(["--only", "weather"])
    assert "there is no weather" in capsys.readouterr().err


@pytest.mark.parametrize(("off", "ends_with"), [(0.1, 0), (0.2, 1)])
def test_a_simulator_that_is_off_ends_with_one(
    off: float, ends_with: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at_commit(monkeypatch, "abc")
    side = {"name": "p95 latency, s", "real": 1.0, "simulated": 1.0 + off, "off": off, "agrees": off < 0.15}
    report = {"commit": "abc", "calibrated": {}, "figures": {side["name"]: side}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "validation.json").write_text(json.dumps(report))
    assert simulate.main(["--only", "validation"]) == ends_with


def test_pictures_are_drawn_of_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at_commit(monkeypatch, "abc")
    studies = {"classes": lambda: TINY, "fills": lambda: FILLED, "constants": lambda: TINY[:1]}
    monkeypatch.setattr(simulate, "STUDIES", studies)
    simulate.main(["--only", "classes,fills,constants", "--plots", str(tmp_path)])
    drawn = {file.name for file in tmp_path.glob("*.png")}
    assert drawn == {"scaling-classes.png", "scaling-day.png", "scaling-fills.png", "scaling-constants.png"}

"""Kept files are whole or as good as none, and hold under the conditions that they were written under only."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.calibration.kept_files import MOST_BYTES, NOTHING_KEPT, KeptFiles, folder_of

HERE = {"machine": "this one", "sizes": (1, 2, 4), "versions": {"torch": "2"}}


class Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seconds: float = Field(gt=0, le=10)


@pytest.fixture
def kept(tmp_path: Path) -> KeptFiles:
    return KeptFiles(tmp_path / "new" / "folder")


def only_file(folder: Path) -> Path:
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    return path


def test_what_was_written_last_is_read_by_another_process_of_the_same_kind(kept: KeptFiles, tmp_path: Path) -> None:
    assert kept.read("speed", HERE, Content) is None
    kept.write("speed", HERE, Content(seconds=1))
    kept.write("speed", HERE, Content(seconds=2))
    assert KeptFiles(tmp_path / "new" / "folder").read("speed", dict(reversed(HERE.items())), Content) == Content(
        seconds=2
    )
    assert kept.read("size", HERE, Content) is None
    assert only_file(tmp_path).suffix == ".json"


def test_only_its_owner_may_write_to_the_folder(kept: KeptFiles, tmp_path: Path) -> None:
    kept.write("speed", HERE, Content(seconds=1))
    assert only_file(tmp_path).parent.stat().st_mode & 0o077 == 0
    assert only_file(tmp_path).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("other", [{"machine": "another"}, {"versions": {"torch": "3"}}, {"sizes": (1, 2)}])
def test_other_conditions_find_nothing(kept: KeptFiles, other: dict[str, object]) -> None:
    kept.write("speed", HERE, Content(seconds=1))
    assert kept.read("speed", HERE | other, Content) is None


def test_a_file_that_was_copied_from_another_machine_is_ignored(
    kept: KeptFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.write("speed", HERE, Content(seconds=1))
    ours = only_file(tmp_path)
    found = json.loads(ours.read_text())
    found["conditions"]["machine"] = "another"
    ours.write_text(json.dumps(found))
    assert kept.read("speed", HERE, Content) is None
    assert "other conditions" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-5],
        lambda text: "",
        lambda text: "\x00" * 10,
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace("1.0", "-1.0"),
        lambda text: text.replace("1.0", "NaN"),
        lambda text: text.replace("1.0", '1.0, "more": 2'),
        lambda text: text.replace('"content"', '"contents"'),
        lambda text: " " * MOST_BYTES + text,
    ],
)
def test_a_damaged_file_is_ignored_said_and_replaced(
    damage: Callable[[str], str], kept: KeptFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.write("speed", HERE, Content(seconds=1))
    path = only_file(tmp_path)
    path.write_text(damage(path.read_text()))
    assert kept.read("speed", HERE, Content) is None
    assert "is ignored" in caplog.text
    kept.write("speed", HERE, Content(seconds=3))
    assert kept.read("speed", HERE, Content) == Content(seconds=3)


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    kept = KeptFiles(tmp_path / "file")
    kept.write("speed", HERE, Content(seconds=1))
    assert "cannot be written" in caplog.text
    assert kept.read("speed", HERE, Content) is None


def test_readers_beside_writers_see_whole_files_only(kept: KeptFiles, tmp_path: Path) -> None:
    kept.write("speed", HERE, Content(seconds=1))
    seen: list[Content | None] = []

    def write(seconds: float) -> None:
        for _ in range(60):
            kept.write("speed", HERE, Content(seconds=seconds))

    writers = [threading.Thread(target=write, args=(seconds,)) for seconds in (1, 2, 3)]
    for each in writers:
        each.start()
    while any(each.is_alive() for each in writers):
        seen.append(kept.read("speed", HERE, Content))
    assert {each.seconds for each in seen if each is not None} <= {1, 2, 3}
    assert None not in seen
    assert only_file(tmp_path).suffix == ".json"


def test_without_a_folder_nothing_is_kept() -> None:
    NOTHING_KEPT.write("speed", HERE, Content(seconds=1))
    assert NOTHING_KEPT.read("speed", HERE, Content) is None


@pytest.mark.parametrize(
    ("setting", "environment", "folder"),
    [
        ("auto", {"XDG_CACHE_HOME": "/cache"}, Path("/cache/darkroom")),
        ("auto", {"HOME": "/home/someone"}, Path("/home/someone/.cache/darkroom")),
        ("~/mine", {"HOME": "/home/someone"}, Path("/home/someone/mine")),
        ("/var/cache/darkroom", {"XDG_CACHE_HOME": "/cache"}, Path("/var/cache/darkroom")),
        ("", {}, None),
        (None, {}, None),
    ],
)
def test_the_setting_names_a_folder(
    setting: str | None, environment: dict[str, str], folder: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert folder_of(setting) == folder


def test_importing_it_loads_no_torch() -> None:
    modules = "deployments.engine.calibration.conditions, deployments.engine.calibration.kept_files"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    root = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"

"""Converted models are kept whole: for the next start, beside other processes, and never if damaged."""

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openvino
import pytest
import torch
from torch import Tensor, nn

from deployments.engine.openvino import converted_files
from deployments.engine.openvino.conversion import Input, convert
from deployments.engine.openvino.converted_files import ConvertedFiles

ORIGIN = {"weights": "abc"}
CORE = openvino.Core()


def doubled() -> openvino.Model:
    weight = torch.full((4,), 2.0)
    return convert(lambda x: (x * weight,), [Input("x", torch.zeros(1, 4))], nn.Identity())


def answer(model: openvino.Model) -> list[float]:
    result: list[float] = CORE.compile_model(model, "CPU")([torch.ones(1, 4).numpy()])[0][0].tolist()
    return result


@pytest.fixture
def files(tmp_path: Path) -> ConvertedFiles:
    """Files with one model in them."""
    made = ConvertedFiles(tmp_path / "new" / "folder")
    assert made.load(CORE, ORIGIN) is None
    assert answer(made.keep(CORE, ORIGIN, doubled(), lambda _: 7.5).model) == [2.0] * 4
    return made


def test_a_kept_model_comes_back_with_its_facts(files: ConvertedFiles) -> None:
    found = files.load(CORE, ORIGIN)
    assert found is not None
    assert (answer(found.model), found.work_bytes) == ([2.0] * 4, 7.5)


def test_other_weights_other_versions_and_other_traces_are_other_models(
    files: ConvertedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.load(CORE, {"weights": "abd"}) is None
    monkeypatch.setattr(converted_files, "version", lambda _: "0.0")
    assert files.load(CORE, ORIGIN) is None
    monkeypatch.undo()
    monkeypatch.setattr(converted_files, "CONVERSION_VERSION", 10**6)
    assert files.load(CORE, ORIGIN) is None


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "facts.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\0" * 64])
def test_a_damaged_model_is_not_used_and_the_next_one_takes_its_place(
    name: str, content: bytes | None, files: ConvertedFiles, tmp_path: Path
) -> None:
    (path,) = tmp_path.rglob(name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert files.load(CORE, ORIGIN) is None
    files.keep(CORE, ORIGIN, doubled(), lambda _: 1.0)
    assert files.load(CORE, ORIGIN) is not None


def test_a_model_that_fails_its_check_is_not_kept(tmp_path: Path) -> None:
    files = ConvertedFiles(tmp_path)

    def fail(_: openvino.Model) -> float:
        raise ValueError("its answers differ")

    with pytest.raises(ValueError, match="differ"):
        files.keep(CORE, ORIGIN, doubled(), fail)
    assert files.load(CORE, ORIGIN) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    files = ConvertedFiles(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        assert answer(files.keep(CORE, ORIGIN, doubled(), lambda _: 1.0).model) == [2.0] * 4
    assert "not kept" in caplog.text


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (openvino, "save_model", RuntimeError("basic_ios::clear: iostream error")),
        (converted_files, "_digests", OSError(errno.ENOSPC, "No space left on device")),
    ],
    ids=["the model", "its facts"],
)
def test_a_full_disk_is_no_error_and_what_is_returned_is_checked(
    place: Any, name: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(place, name, fail)
    files, checked = ConvertedFiles(tmp_path), []

    def check(model: openvino.Model) -> float:
        checked.append(answer(model))
        return 7.5

    kept = files.keep(CORE, ORIGIN, doubled(), check)
    assert (answer(kept.model), kept.work_bytes, checked) == ([2.0] * 4, 7.5, [[2.0] * 4])
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_has_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    old, new, kept = tmp_path / "new-old", tmp_path / "new-new", tmp_path / "kept"
    for folder in (old, new, kept):
        folder.mkdir()
        (folder / "model.bin").touch()
    long_ago = time.time() - 2 * converted_files.LEFT_BEHIND_S
    for path in (old / "model.bin", old, new, kept / "model.bin", kept):
        os.utime(path, (long_ago, long_ago))
    ConvertedFiles(tmp_path)
    assert sorted(tmp_path.iterdir()) == [kept, new]


def test_another_user_of_the_folder_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        ConvertedFiles(tmp_path / "folder").keep(CORE, ORIGIN, doubled(), lambda _: 1.0)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "folder").rglob("*") if path.is_dir()}
    assert modes == {0o755}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "folder").rglob("*"))


def test_a_model_that_another_process_has_kept_meanwhile_is_not_replaced(files: ConvertedFiles, tmp_path: Path) -> None:
    (facts,) = tmp_path.rglob("facts.json")
    before = facts.stat().st_ino
    assert answer(files.keep(CORE, ORIGIN, doubled(), lambda _: 9.0).model) == [2.0] * 4
    assert facts.stat().st_ino == before
    assert len(list(facts.parent.parent.iterdir())) == 1


def test_without_a_folder_nothing_is_kept() -> None:
    files = ConvertedFiles(None)
    assert answer(files.keep(CORE, ORIGIN, doubled(), lambda _: 1.0).model) == [2.0] * 4
    assert files.load(CORE, ORIGIN) is None


def test_processes_that_convert_at_the_same_time_leave_one_whole_model(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from tests.deployments.engine.openvino.test_converted_files import *
files = ConvertedFiles(Path({str(tmp_path)!r}))
for _ in range(3):
    assert answer(files.keep(CORE, ORIGIN, doubled(), lambda _: 1.0).model) == [2.0] * 4
assert files.load(CORE, ORIGIN) is not None
"""
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1
    assert ConvertedFiles(tmp_path).load(CORE, ORIGIN) is not None


def test_what_is_converted_does_not_depend_on_the_example(files: ConvertedFiles) -> None:
    def add(x: Tensor) -> tuple[Tensor, ...]:
        return (x + x.shape[0],)

    model = convert(add, [Input("x", torch.zeros(1, 4))], nn.Identity())
    compiled = CORE.compile_model(model, "CPU")
    assert compiled([torch.zeros(3, 4).numpy()])[0].max() == 3

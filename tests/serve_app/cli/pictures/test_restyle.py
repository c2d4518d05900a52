"""`darkroom restyle`: a folder of pictures, restyled after others, under their own names."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from serve_app.cli.exits import EXIT_NO_IMAGE, EXIT_USAGE
from serve_app.cli.main import app
from serve_app.cli.pictures import restyle
from tests.serve_app.fakes import STYLED, FakeBackend


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(models=(STYLED,))


@pytest.fixture
def look(tmp_path: Path) -> str:
    Image.new("RGB", (64, 64), "gold").save(tmp_path / "look.png")
    return str(tmp_path / "look.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shoes").mkdir()
    for name, colour in (("a.png", "red"), ("b.jpg", "green"), ("b.png", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "shoes" / name)
    (tmp_path / "shoes" / "notes.txt").write_text("no picture")
    return tmp_path / "shoes"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["restyle", *arguments])


def test_every_picture_is_saved_under_its_own_name(
    url: str, backend: FakeBackend, folder: Path, look: str, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    result = run(str(folder), "--reference", look, "-o", str(made), "--strength", "0.5", "--seed", "3", "--url", url)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in made.iterdir()) == ["a-0.png", "b.jpg-0.png", "b.png-0.png"]
    assert len(backend.asked) == 3
    for request in backend.asked:
        assert request.uploads is not None
        assert request.uploads.references == (Path(look).read_bytes(),)
        assert (request.params.strength, request.params.seed, request.params.prompt) == (0.5, 3, "")


def test_a_large_folder_goes_in_several_calls_with_one_seed(
    url: str, backend: FakeBackend, folder: Path, look: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restyle, "MAX_SET", 2)
    made = tmp_path / "made"
    result = run(str(folder), "--reference", look, "-o", str(made), "--json", "--url", url)
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert len([line for line in told if set(line) == {"job"}]) == 2
    assert {line["picture"] for line in told if "picture" in line} == {"a", "b.jpg", "b.png"}
    assert len(list(made.iterdir())) == 3
    assert len({request.params.seed for request in backend.asked}) == 1


def test_a_broken_picture_costs_the_others_nothing(url: str, folder: Path, look: str, tmp_path: Path) -> None:
    (folder / "a.png").write_bytes(b"no picture")
    result = run(str(folder), "--reference", look, "-o", str(tmp_path / "made"), "--url", url)
    assert result.exit_code == EXIT_NO_IMAGE
    assert "picture a: " in result.output
    assert len(list((tmp_path / "made").iterdir())) == 2


def test_every_source_is_as_it_was(url: str, backend: FakeBackend, folder: Path, look: str, tmp_path: Path) -> None:
    """Where a restyled picture could take the place of one that it is made from, nothing is made."""
    Image.new("RGB", (64, 64), "white").save(folder / "a-0.png")
    (tmp_path / "made").mkdir()
    Image.new("RGB", (64, 64), "black").save(tmp_path / "made" / "a-0.png")
    (folder / "linked.png").symlink_to(tmp_path / "made" / "a-0.png")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "same").symlink_to(folder)
    for output in (folder, folder / ".." / "shoes", tmp_path / "same", tmp_path / "made"):
        result = run(str(folder), "--reference", look, "-o", str(output), "--url", url)
        assert (result.exit_code, result.output.startswith("darkroom: output: ")) == (EXIT_USAGE, True)
    reference = str(tmp_path / "made" / "a-0.png")
    assert (
        run(str(folder), "--reference", reference, "-o", str(tmp_path / "made"), "--url", url).exit_code == EXIT_USAGE
    )
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert backend.asked == []


def test_every_picture_has_a_name_of_its_own(url: str, folder: Path, look: str, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png.png"):
        Image.new("RGB", (64, 64), "black").save(folder / name)
    made = tmp_path / "made"
    result = run(str(folder), "--reference", look, "-o", str(made), "--url", url)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in made.iterdir()) == [
        "a.jpg-0.png",
        "a.png-0.png",
        "a.png.png-0.png",
        "b.jpg-0.png",
        "b.png-0.png",
    ]


def test_a_slip_is_told_by_its_option(folder: Path, look: str, tmp_path: Path) -> None:
    made = ("-o", str(tmp_path / "made"))
    gone = run(str(tmp_path / "gone"), "--reference", look, *made)
    assert (gone.exit_code, gone.output.startswith("darkroom: folder: ")) == (EXIT_USAGE, True)
    (tmp_path / "empty").mkdir()
    assert "has no picture" in run(str(tmp_path / "empty"), "--reference", look, *made).output
    unread = run(str(folder), "--reference", str(tmp_path / "gone.png"), *made)
    assert unread.output.startswith("darkroom: reference: ")
    assert run(str(folder), *made).exit_code == EXIT_USAGE
    blocked = run(str(folder), "--reference", look, "-o", look)
    assert (blocked.exit_code, blocked.output.startswith("darkroom: output: ")) == (EXIT_USAGE, True)

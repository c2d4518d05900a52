"""The registry of embeddings: rows, and a folder whose files come, change and go while it is watched."""

import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deployments import embeddings
from deployments.embeddings import EmbeddingRegistry, EmbeddingSpec
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.files.embeddings import EmbeddingFile
from tests.deployments.engine.embedding_files import save_embedding


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_a_while(self) -> None:
        self.now += embeddings.LOOK_EVERY_S


def names(registry: EmbeddingRegistry) -> list[str]:
    return [file.name for file in registry.files]


def test_a_row_is_read_once_and_described(tmp_path: Path) -> None:
    saved = save_embedding(tmp_path, "toy", 3, token="<toy>")
    registry = EmbeddingRegistry([EmbeddingSpec("toy", saved.path, "<toy>")])
    assert registry.files == (saved,)
    assert (saved.vectors, saved.width, len(saved.digest)) == (3, 32, 64)
    assert registry.find_in(["a <TOY> and a toy", ""]) == (saved,)
    assert registry.find_in(["a toy"]) == ()


def test_files_of_the_folder_have_their_own_names_and_are_noticed_without_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    registry = EmbeddingRegistry(folder=tmp_path, clock=clock)
    assert names(registry) == []
    first = save_embedding(tmp_path, "hat", 1)
    assert names(registry) == []
    clock.pass_a_while()
    assert names(registry) == ["hat"]
    assert registry.find_in(["a hat"]) == (first,)
    second = save_embedding(tmp_path, "hat", 2)
    os.utime(second.path, ns=(1, 1))
    clock.pass_a_while()
    (changed,) = registry.find_in(["a hat"])
    assert (changed.vectors, changed.digest != first.digest) == (2, True)
    Path(second.path).unlink()
    clock.pass_a_while()
    assert registry.find_in(["a hat"]) == ()


def test_a_file_that_cannot_be_used_is_told_once_and_leaves_the_others_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    good = save_embedding(tmp_path, "good")
    (tmp_path / "cut.safetensors").write_bytes(Path(good.path).read_bytes()[:-5])
    (tmp_path / "a name.safetensors").write_bytes(Path(good.path).read_bytes())
    (tmp_path / "large.safetensors").write_bytes(b"x" * (embeddings.LARGEST + 1))
    (tmp_path / "GOOD.safetensors").write_bytes(Path(good.path).read_bytes())
    (tmp_path / "notes.txt").write_text("no")
    (tmp_path / "old.pt").write_bytes(b"PK")
    save_file({"clip_l": torch.ones(1, 8), "clip_g": torch.ones(2, 8)}, tmp_path / "uneven.safetensors")
    registry = EmbeddingRegistry(folder=tmp_path, clock=clock)
    with caplog.at_level(logging.WARNING):
        assert names(registry) == ["GOOD"]
        assert set(registry.skipped) == {"cut", "a name", "large", "uneven", "good"}
        said = len(caplog.records)
        clock.pass_a_while()
        assert len(registry.skipped) == 5
    assert said == len(caplog.records) == 5
    assert "is cut off" in registry.skipped["cut"]
    assert "for the other" in registry.skipped["uneven"]
    assert str(tmp_path) not in " ".join(registry.skipped.values())
    assert registry.files[0].digest == good.digest


def test_a_folder_that_is_not_there_yet_has_no_files(tmp_path: Path) -> None:
    clock = Clock()
    registry = EmbeddingRegistry(folder=tmp_path / "later", clock=clock)
    assert names(registry) == []
    (tmp_path / "later").mkdir()
    save_embedding(tmp_path / "later", "hat")
    clock.pass_a_while()
    assert names(registry) == ["hat"]


def test_a_row_goes_before_a_file_of_its_name(tmp_path: Path) -> None:
    row = save_embedding(tmp_path, "hat", 2)
    (tmp_path / "folder").mkdir()
    save_embedding(tmp_path / "folder", "hat", 5)
    registry = EmbeddingRegistry([EmbeddingSpec("hat", row.path)], tmp_path / "folder")
    assert registry.files == (row,)
    assert registry.skipped == {"hat": "another embedding has this name or token"}


def test_rows_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    one, other = save_embedding(tmp_path, "one"), save_embedding(tmp_path, "other")
    with pytest.raises(ModelLoadError, match="embedding 'gone': there is no file"):
        EmbeddingRegistry([EmbeddingSpec("gone", str(tmp_path / "gone.safetensors"))])
    with pytest.raises(ModelLoadError, match=r"embedding 'x': x\.pt is no safetensors file"):
        EmbeddingRegistry([EmbeddingSpec("x", str(tmp_path / "x.pt"))])
    with pytest.raises(ModelLoadError, match="more than one has the name or the token '<t>'"):
        EmbeddingRegistry([EmbeddingSpec("one", one.path, "<t>"), EmbeddingSpec("other", other.path, "<T>".lower())])


def test_what_a_token_stands_for_decides_and_not_what_it_is_called(tmp_path: Path) -> None:
    file = save_embedding(tmp_path, "hat")
    moved = EmbeddingFile("cap", "HAT", "/elsewhere", file.digest, file.vectors, file.width)
    assert moved.identity == file.identity

"""Versions of a LoRA: one is served at a time, and which one changes by a rename, never by half a file."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.settings import LoraSettings
from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.catalogue import LoraCatalogue
from deployments.loras.versions import LoraVersions
from tests.deployments.loras.files import write_lora

ANY = ModelSpec("any", "maker/any", native_size=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "loras"
    found.mkdir()
    return found


def add(folder: Path, tmp_path: Path, seed: int, name: str = "lamp") -> bytes:
    """Adds a version, and returns its bytes."""
    weights = write_lora(tmp_path / f"{seed}.safetensors", seed=seed)
    LoraVersions(folder).add(name, weights, f"card {seed}", None)
    return weights.read_bytes()


def served(folder: Path, name: str = "lamp") -> bytes:
    """What a request that names it gets."""
    (use,) = LoraCatalogue(folder=folder).resolve([LoraSettings(name=name)], ANY)
    return Path(use.file.source).read_bytes()


def refusal(act: object) -> str:
    assert callable(act)
    with pytest.raises(InvalidParameter) as refused:
        act()
    return f"{refused.value.field}: {refused.value.message}"


def test_the_newest_version_is_served_and_every_earlier_one_can_be(folder: Path, tmp_path: Path) -> None:
    files = [add(folder, tmp_path, seed) for seed in range(3)]
    versions = LoraVersions(folder)
    assert [(each.number, each.is_served) for each in versions.find("lamp")] == [(1, False), (2, False), (3, True)]
    assert served(folder) == files[2]
    assert versions.roll_back("lamp").number == 2
    assert served(folder) == files[1]
    assert (folder / "lamp.md").read_text() == "card 1"
    assert versions.roll_back("lamp").number == 1
    assert "no earlier version" in refusal(lambda: versions.roll_back("lamp"))
    assert versions.serve("lamp", 3).is_served
    assert served(folder) == files[2]
    assert [each.name for each in map(lambda entry: entry.spec, LoraCatalogue(folder=folder).entries())] == ["lamp"]


def test_a_new_version_after_a_rollback_has_a_new_number(folder: Path, tmp_path: Path) -> None:
    for seed in range(2):
        add(folder, tmp_path, seed)
    LoraVersions(folder).roll_back("lamp")
    file = add(folder, tmp_path, 5)
    assert [each.number for each in LoraVersions(folder).find()] == [1, 2, 3]
    assert served(folder) == file


def test_what_is_served_is_deleted_only_with_all_of_it(folder: Path, tmp_path: Path) -> None:
    for seed in range(2):
        add(folder, tmp_path, seed)
    versions = LoraVersions(folder)
    assert "2 is served" in refusal(lambda: versions.delete("lamp", 2))
    versions.delete("lamp", 1)
    assert [each.number for each in versions.find()] == [2]
    assert "it has 2" in refusal(lambda: versions.serve("lamp", 1))
    versions.delete("lamp")
    assert versions.find() == []
    assert LoraCatalogue(folder=folder).entries() == []
    assert "no training has made" in refusal(lambda: versions.delete("lamp"))


def test_nobody_elses_file_is_replaced_or_deleted(folder: Path, tmp_path: Path) -> None:
    write_lora(folder / "coffee.safetensors")
    before = (folder / "coffee.safetensors").read_bytes()
    assert "no training has made" in refusal(lambda: add(folder, tmp_path, 1, "coffee"))
    assert "no training has made" in refusal(lambda: LoraVersions(folder).delete("coffee"))
    assert (folder / "coffee.safetensors").read_bytes() == before
    weights = write_lora(tmp_path / "1.safetensors")
    named = LoraVersions(folder, frozenset({"film"}))
    assert "of the configuration" in refusal(lambda: named.add("film", weights, "", None))


def test_only_a_loras_own_tenant_and_the_operator_add_versions(folder: Path, tmp_path: Path) -> None:
    files = [write_lora(tmp_path / f"{seed}.safetensors", seed=seed) for seed in range(4)]
    weights, versions = files[0], LoraVersions(folder)
    for number in (1, 2):
        assert versions.add("lamp", files[number - 1], "", None, "acme").number == number
    for file in files:
        assert "somebody else's" in refusal(lambda file=file: versions.add("lamp", file, "", None, "other"))
    assert "somebody else's" in refusal(lambda: versions.check_owner("lamp", "other"))
    assert versions.add("lamp", files[2], "", None).number == 3
    assert versions.add("lamp", files[3], "", None, "acme").number == 4
    versions.delete("lamp")
    assert versions.add("lamp", weights, "", None, "other").number == 1
    versions.add("cup", weights, "", None)
    assert "somebody else's" in refusal(lambda: versions.add("cup", weights, "", None, "acme"))


@pytest.mark.parametrize("name", ["../lamp", "a/b", "", ".", "x" * 101])
def test_a_name_is_never_a_path(name: str, folder: Path, tmp_path: Path) -> None:
    assert refusal(lambda: add(folder, tmp_path, 1, name)).startswith("name:")
    assert refusal(lambda: LoraVersions(folder).delete(name)).startswith("name:")


def test_a_file_that_cannot_be_served_is_not_added(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    assert "cannot be served" in refusal(lambda: LoraVersions(folder).add("lamp", broken, "", None))
    assert LoraVersions(folder).find() == []


def test_a_version_is_told_from_an_earlier_one_of_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for seed in (1, 2, 1):
        add(folder, tmp_path, seed)
    versions = LoraVersions(folder)
    assert [(each.number, each.is_served) for each in versions.find()] == [(1, False), (2, False), (3, True)]
    versions.delete("lamp", 1)
    assert versions.roll_back("lamp").number == 2
    assert "no earlier version" in refusal(lambda: versions.roll_back("lamp"))


def test_what_is_served_already_is_no_new_version(folder: Path, tmp_path: Path) -> None:
    for seed in (1, 2, 2):
        add(folder, tmp_path, seed)
    versions = LoraVersions(folder)
    assert [(each.number, each.is_served) for each in versions.find()] == [(1, False), (2, True)]
    weights = write_lora(tmp_path / "2.safetensors", seed=2)
    assert versions.add("lamp", weights, "another card", None).number == 2


def as_it_once_was(folder: Path, name: str = "lamp") -> None:
    """Makes copies of what is served, as earlier versions of this service had them."""
    for path in (folder / f"{name}.safetensors", folder / f"{name}.md"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    (folder / "versions" / name / "served").unlink()


def test_a_folder_whose_served_files_are_copies_is_read_and_goes_on(folder: Path, tmp_path: Path) -> None:
    files = [add(folder, tmp_path, seed) for seed in range(3)]
    versions = LoraVersions(folder)
    versions.roll_back("lamp")
    as_it_once_was(folder)
    assert [each.number for each in versions.find() if each.is_served] == [2]
    assert served(folder) == files[1]
    assert versions.roll_back("lamp").number == 1
    assert (served(folder), (folder / "lamp.md").read_text()) == (files[0], "card 0")
    as_it_once_was(folder)
    versions.delete("lamp")
    assert [each.name for each in folder.iterdir()] == ["versions"]


def test_what_is_no_version_is_passed_over(folder: Path, tmp_path: Path) -> None:
    """What a file manager, an operator or a process that was killed has left there."""
    file = add(folder, tmp_path, 1)
    (folder / "versions" / ".DS_Store").write_text("")
    (folder / "versions" / "a: file").write_text("")
    (folder / "versions" / ".deleted-1" / "gone").mkdir(parents=True)
    for name in (".DS_Store", "notes", "5", "007"):
        (folder / "versions" / "lamp" / name).mkdir()
    assert [each.number for each in LoraVersions(folder).find()] == [1]
    assert served(folder) == file
    add(folder, tmp_path, 2)
    assert [each.number for each in LoraVersions(folder).find()] == [1, 6]
    LoraVersions(folder).delete("lamp")
    assert not (folder / "versions" / ".deleted-1").exists()


def test_who_copies_a_file_to_what_is_served_overwrites_no_version(folder: Path, tmp_path: Path) -> None:
    add(folder, tmp_path, 1)
    assert not (folder / "lamp.safetensors").stat().st_mode & 0o222


CHANGES = ("rename", "replace", "symlink", "unlink", "mkdir", "rmdir")

ACTS: dict[str, Callable[[LoraVersions, Path], object]] = {
    "add": lambda versions, new: versions.add("lamp", new, "card 9", None),
    "add the first": lambda versions, new: versions.add("first", new, "card 9", None, "acme"),
    "serve": lambda versions, _: versions.serve("lamp", 1),
    "delete one": lambda versions, _: versions.delete("lamp", 1),
    "delete all": lambda versions, _: versions.delete("lamp"),
}


@pytest.mark.parametrize("is_old", [False, True], ids=["links", "copies"])
@pytest.mark.parametrize("act", ACTS)
def test_whenever_a_process_is_killed_one_version_is_served_whole(
    act: str, is_old: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every change to the folder, it is copied: what a kill at that moment would leave."""
    for seed in (1, 2):
        add(folder, tmp_path, seed)
    if is_old:
        as_it_once_was(folder)
    new = write_lora(tmp_path / "9.safetensors", seed=9)
    whole = {path.read_bytes(): f"card {path.stem}" for path in tmp_path.glob("*.safetensors")}
    left: list[Path] = []

    def copied(do: Callable[..., object]) -> Callable[..., object]:
        def copy_first(*args: object, **more: object) -> object:
            with monkeypatch.context() as real:
                for name in CHANGES:
                    real.setattr(os, name, really[name])
                left.append(tmp_path / f"left-{len(left)}")
                shutil.copytree(folder, left[-1], symlinks=True)
            return do(*args, **more)

        return copy_first

    really = {name: getattr(os, name) for name in CHANGES}
    with monkeypatch.context() as watched:
        for name, do in really.items():
            watched.setattr(os, name, copied(do))
        ACTS[act](LoraVersions(folder), new)
    assert len(left) > 3
    for each in left:
        versions = LoraVersions(each)
        names = [entry.spec.name for entry in LoraCatalogue(folder=each).entries()]
        assert names in (["lamp"], ["first", "lamp"], [] if act == "delete all" else ["lamp"])
        assert len([version for version in versions.find() if version.is_served]) == len(names)
        for name in names:
            card = each / f"{name}.md"
            assert whole[served(each, name)] == card.read_text()
        # Whoever comes next can do all of it.
        made = versions.add("lamp", new, "card 9", None)
        assert versions.serve("lamp", made.number).is_served
        assert (served(each), (each / "lamp.md").read_text()) == (new.read_bytes(), "card 9")
        versions.delete("lamp")
        assert "lamp" not in [entry.spec.name for entry in LoraCatalogue(folder=each).entries()]


def test_those_who_change_it_at_once_leave_one_version_with_its_own_card(folder: Path, tmp_path: Path) -> None:
    files = {add(folder, tmp_path, seed): f"card {seed}" for seed in range(4)}
    seen: list[bytes] = []

    def change(number: int) -> None:
        for _ in range(10):
            LoraVersions(folder).serve("lamp", number)
            seen.append(served(folder))

    threads = [threading.Thread(target=change, args=(number,)) for number in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 40
    assert set(seen) <= set(files)
    assert files[served(folder)] == (folder / "lamp.md").read_text()

"""Versions of a LoRA: one is served at a time, and which one changes by a rename, never by half a file."""

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
    weights, versions = write_lora(tmp_path / "1.safetensors"), LoraVersions(folder)
    for number in (1, 2):
        assert versions.add("lamp", weights, "", None, "acme").number == number
    assert "somebody else's" in refusal(lambda: versions.add("lamp", weights, "", None, "other"))
    assert "somebody else's" in refusal(lambda: versions.check_owner("lamp", "other"))
    assert versions.add("lamp", weights, "", None).number == 3
    assert versions.add("lamp", weights, "", None, "acme").number == 4
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

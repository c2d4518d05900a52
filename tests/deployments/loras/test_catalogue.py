"""LoRAs are found by name only, in rows and in a folder that may change while the server runs."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.settings import LoraSettings
from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.catalogue import LoraCatalogue, LoraSpec
from deployments.registry import known_models
from tests.deployments.loras.files import write_lora

ANY = ModelSpec("any", "maker/any", native_size=64, aliases=("maker/any",))
SD15, SD21, DEMO = (known_models()[name] for name in ("sd15", "sd21", "demo-sd"))


def names_of(catalogue: LoraCatalogue) -> list[str]:
    return [entry.spec.name for entry in catalogue.entries()]


def refusal(catalogue: LoraCatalogue, name: str, model: ModelSpec = ANY) -> str:
    with pytest.raises(InvalidParameter) as refused:
        catalogue.resolve([LoraSettings.model_construct(name=name, scale=1.0)], model)
    assert refused.value.field == "loras"
    return refused.value.message


def test_a_folders_files_are_found_as_they_come_change_and_go(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    catalogue = LoraCatalogue(folder=folder)
    assert names_of(catalogue) == []
    folder.mkdir()
    path = write_lora(folder / "coffee.safetensors")
    assert names_of(catalogue) == ["coffee"]
    asked = [LoraSettings(name="coffee", scale=0.5)]
    (first,) = catalogue.resolve(asked, ANY)
    assert first.scale == 0.5
    assert first.file.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    write_lora(folder / "next.safetensors", seed=1)
    os.replace(folder / "next.safetensors", path)
    (second,) = catalogue.resolve(asked, ANY)
    assert second.file.digest == hashlib.sha256(path.read_bytes()).hexdigest() != first.file.digest
    path.unlink()
    assert names_of(catalogue) == []
    assert "no LoRA of this name" in refusal(catalogue, "coffee")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", ".hidden", "", "x\x00y", "..", "a\\b", "x" * 300])
def test_a_name_never_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_lora(tmp_path / "secret.safetensors")
    write_lora(tmp_path / "in" / ".hidden.safetensors")
    catalogue = LoraCatalogue(folder=tmp_path / "in")
    assert "no LoRA of this name" in refusal(catalogue, name)
    assert names_of(catalogue) == []


def test_rows_go_before_files_and_hub_rows_are_known_by_their_commit(tmp_path: Path) -> None:
    write_lora(tmp_path / "coffee.safetensors")
    other = write_lora(tmp_path / "other.safetensors", seed=1)
    hub = LoraSpec("lcm", "maker/lcm", "a" * 40, "x.safetensors")
    catalogue = LoraCatalogue([LoraSpec("coffee", str(other)), hub], tmp_path)
    assert names_of(catalogue) == ["coffee", "lcm", "other"]
    first, second = catalogue.resolve([LoraSettings(name="coffee"), LoraSettings(name="lcm")], ANY)
    assert first.file.source == str(other)
    assert first.file.identity == (hashlib.sha256(other.read_bytes()).hexdigest(),)
    assert second.file.identity == ("maker/lcm", "a" * 40, "x.safetensors")


def test_a_scale_of_zero_has_no_effect_and_needs_a_name_that_is_there(tmp_path: Path) -> None:
    write_lora(tmp_path / "coffee.safetensors")
    catalogue = LoraCatalogue(folder=tmp_path)
    assert catalogue.resolve([LoraSettings(name="coffee", scale=0)], ANY) == ()
    with pytest.raises(InvalidParameter, match="did you mean coffee"):
        catalogue.resolve([LoraSettings(name="cofee", scale=0)], ANY)


@pytest.mark.parametrize(
    ("width", "base", "model", "fits"),
    [
        (768, "", SD15, True),
        (768, "", SD21, False),
        (1024, "", SD21, True),
        (1024, "", SD15, False),
        (2048, "", SD15, False),
        (768, "sd_v1", SD15, True),
        (768, "", DEMO, False),
        (768, "", ANY, True),
    ],
)
def test_a_lora_of_another_family_is_refused_before_anything_runs(
    width: int, base: str, model: ModelSpec, fits: bool, tmp_path: Path
) -> None:
    write_lora(tmp_path / "coffee.safetensors", width=width, base=base)
    catalogue = LoraCatalogue(folder=tmp_path)
    (entry,) = catalogue.entries()
    assert (entry.misfit(model) is None) == fits
    if not fits:
        assert model.name in refusal(catalogue, "coffee", model)


def test_a_lora_for_the_demo_family_fits_it(tmp_path: Path) -> None:
    config = json.loads((Path(DEMO.source) / "unet" / "config.json").read_text())
    write_lora(tmp_path / "coffee.safetensors", width=config["cross_attention_dim"])
    catalogue = LoraCatalogue(folder=tmp_path)
    assert len(catalogue.resolve([LoraSettings(name="coffee")], DEMO)) == 1


def test_a_row_is_for_the_models_that_it_names_by_name_or_alias(tmp_path: Path) -> None:
    path = str(write_lora(tmp_path / "x.safetensors"))
    other = ModelSpec("other", "maker/other", native_size=64)
    for name in ("any", "maker/any"):
        catalogue = LoraCatalogue([LoraSpec("coffee", path, models=(name,))])
        assert len(catalogue.resolve([LoraSettings(name="coffee")], ANY)) == 1
        assert name in refusal(catalogue, "coffee", other)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "empty"), (b"PK\x03\x04", "pickle"), (b"<!doctype html>", "web page"), (b"\x10" + bytes(20), "safetensors")],
)
def test_files_that_cannot_be_used_are_listed_with_what_is_wrong(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(content)
    catalogue = LoraCatalogue(folder=tmp_path)
    (entry,) = catalogue.entries()
    assert what in (entry.problem or "")
    assert what in refusal(catalogue, "broken")
    assert str(tmp_path) not in refusal(catalogue, "broken")


def test_formats_that_cannot_be_applied_are_listed_by_name_and_textual_inversions_are_no_problem(
    tmp_path: Path,
) -> None:
    write_lora(tmp_path / "norms.safetensors", end="w_norm")
    write_lora(tmp_path / "words.safetensors", token="my-cup")
    norms, words = LoraCatalogue(folder=tmp_path).entries()
    assert "norms" in (norms.problem or "")
    assert words.problem is None


def test_a_row_whose_file_is_gone_says_so(tmp_path: Path) -> None:
    catalogue = LoraCatalogue([LoraSpec("coffee", str(tmp_path / "x.safetensors"))])
    assert "not there" in refusal(catalogue, "coffee")
    assert names_of(catalogue) == ["coffee"]

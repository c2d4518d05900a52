"""The registry's rows, and the rule that nothing is loaded that was not pinned."""

import dataclasses
import re
from pathlib import Path

import pytest

from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.sampler_names import resolve_sampler
from deployments.engine.protocol.spec import ModelSpec, PartSpec, as_part, sources_of
from deployments.pins import PINS, pin_part
from deployments.registry import DEMO_MODELS, GUIDE_CONTROLNETS, MODELS, find_clashes, known_models
from deployments.source_checks import check_source

EVERY = (*DEMO_MODELS, *MODELS)


def test_every_row_is_reachable_by_its_own_name() -> None:
    assert list(known_models().values()) == list(EVERY)


def test_no_two_real_models_answer_to_one_name() -> None:
    assert find_clashes(MODELS) == []


def test_the_demo_family_answers_to_the_names_of_the_guide() -> None:
    for name in (
        "runwayml/stable-diffusion-v1-5",
        "stabilityai/stable-diffusion-2-1",
        "sd15",
        "sd21",
        "sdxl",
        "sd15-inpaint",
    ):
        assert any(spec.has_name(name) for spec in DEMO_MODELS)


@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: spec.name)
def test_every_row_is_complete(spec: ModelSpec) -> None:
    assert spec.licence
    assert spec.native_size % 8 == 0
    assert spec.native_size**2 <= spec.max_pixels
    assert resolve_sampler(spec.default_sampler) == spec.default_sampler


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.name)
def test_a_hub_model_without_a_commit_is_refused_and_the_message_says_what_to_pin(spec: ModelSpec) -> None:
    with pytest.raises(ModelLoadError, match=f"'{spec.name}'.*pin `revision`.*'{spec.source}'"):
        check_source(dataclasses.replace(spec, revision=None))


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.name)
def test_every_row_is_pinned_or_says_how_to_convert_it(spec: ModelSpec) -> None:
    if spec.name == "sd21-controlled":
        with pytest.raises(ModelLoadError, match=r"'canny': .* pickled weights only; `darkroom convert thibaud/"):
            check_source(spec)
        return
    check_source(spec)
    for part in sources_of(spec):
        assert re.fullmatch("[0-9a-f]{40}", part.revision or "")
        assert part.revision == PINS[part.source].revision


def test_every_pin_says_how_well_it_is_known() -> None:
    for pin in PINS.values():
        known = set(pin.kinds.split(", ")) <= {"code", "hashes", "cache", "document", "official"}
        assert (pin.sources > 0 and known) if pin.revision else (pin.sources, pin.kinds) == (0, "")


def test_pickled_weights_are_taken_once_they_are_a_folder_or_another_commit(tmp_path: Path) -> None:
    row = known_models()["sd15"]
    source = "lllyasviel/control_v11f1e_sd15_tile"
    pickled = dataclasses.replace(row, controlnets={"tile": pin_part(source, "")})
    with pytest.raises(ModelLoadError, match=f"`darkroom convert {source} FOLDER --revision {PINS[source].revision}`"):
        check_source(pickled)
    check_source(dataclasses.replace(row, controlnets={"tile": str(tmp_path)}))
    check_source(dataclasses.replace(row, controlnets={"tile": PartSpec(source, "0" * 40)}))


def test_a_pinned_model_and_a_local_folder_are_taken(tmp_path: Path) -> None:
    check_source(dataclasses.replace(MODELS[0], revision="0" * 40))
    check_source(ModelSpec(name="mine", source=str(tmp_path)))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no folder"):
        check_source(ModelSpec(name="mine", source=str(tmp_path / "nowhere")))


def test_clashes_sees_aliases() -> None:
    one, two = ModelSpec("one", "a", aliases=("x",)), ModelSpec("x", "b", aliases=("y",))
    assert find_clashes([one, two]) == ["x"]


def test_a_controlnet_without_a_commit_is_refused_too() -> None:
    row = next(spec for spec in MODELS if spec.name == "controlnet-canny")
    with pytest.raises(ModelLoadError, match=r"ControlNet 'canny': pin `controlnets: canny: revision`"):
        check_source(dataclasses.replace(row, controlnets={"canny": PartSpec("maker/net")}))
    check_source(dataclasses.replace(row, controlnets={"canny": PartSpec("maker/net", "0" * 40)}))


def test_the_guides_controlnets_are_there_alone_and_together() -> None:
    rows = known_models()
    for kind in GUIDE_CONTROLNETS:
        assert list(rows[f"controlnet-{kind}"].controlnets) == [kind]
        assert rows[f"controlnet-{kind}"].source == rows["sd15"].source
        assert {kind} <= set(rows["sd15-controlled"].controlnets) & set(rows["sd21-controlled"].controlnets)


def test_what_the_demo_family_shares_is_stored_once() -> None:
    first, second, inpainting, xl = DEMO_MODELS
    assert set(second.parts) == {"vae", "tokenizer"}
    assert set(inpainting.parts) == {"vae", "text_encoder", "tokenizer"}
    assert set(xl.parts) == {"vae", "tokenizer", "tokenizer_2"}
    for spec in (second, inpainting, xl):
        for part, given in spec.parts.items():
            assert Path(as_part(given).source) == Path(first.source) / part.removesuffix("_2")
            assert not (Path(spec.source) / part).exists()


def test_an_ip_adapter_is_checked_with_its_image_encoder(tmp_path: Path) -> None:
    row = known_models()["sd15"]
    adapter = row.ip_adapters["ip-adapter"]
    (tmp_path / "mine.safetensors").touch()
    for changes, reason in (
        ({"revision": None}, "name `file` under `ip_adapters: mine`, and pin `revision`"),
        ({"file": ""}, "name `file` under `ip_adapters: mine`"),
        ({"file": "models/ip-adapter.bin"}, "is no safetensors file"),
        ({"source": str(tmp_path)}, "is a folder; give the safetensors file"),
        ({"source": "./none.safetensors"}, "there is no file"),
        ({"image_encoder_revision": None}, "its image encoder: pin `ip_adapters: mine: image_encoder_revision`"),
        ({"image_encoder": "./none", "image_encoder_revision": None}, "its image encoder: there is no folder"),
    ):
        changed = dataclasses.replace(adapter, **changes)
        with pytest.raises(ModelLoadError, match=f"'sd15', IP-Adapter 'mine'.*{reason}"):
            check_source(dataclasses.replace(row, ip_adapters={"mine": changed}))
    local = dataclasses.replace(adapter, source=str(tmp_path / "mine.safetensors"), image_encoder=str(tmp_path))
    check_source(dataclasses.replace(row, ip_adapters={"mine": local}))

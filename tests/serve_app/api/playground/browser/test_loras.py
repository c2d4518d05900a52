"""LoRAs: those that fit the model can be chosen, and what is seen of them is what is asked for."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from deployments.loras.catalogue import LoraCatalogue, LoraSpec
from serve_app.cache.result_cache import ResultCache
from serve_app.config.sections import CacheConfig
from serve_app.service import DiffusionService
from tests.deployments.loras.files import write_lora
from tests.serve_app.api.playground.browser.visits import fact, make, photo
from tests.serve_app.fakes import FakeBackend


@pytest.fixture
def service(backend: FakeBackend, tmp_path: Path) -> DiffusionService:
    """One LoRA for every model, one for the model `tiny`, and one that cannot be used."""
    write_lora(tmp_path / "coffee.safetensors")
    write_lora(tmp_path / "norms.safetensors", end="w_norm")
    (tmp_path / "rows").mkdir()
    shoe = write_lora(tmp_path / "rows" / "shoe.safetensors")
    catalogue = LoraCatalogue([LoraSpec("shoe", str(shoe), models=("tiny",))], tmp_path)
    return DiffusionService(backend, cache=ResultCache(CacheConfig()), loras=catalogue)


def add(page: Page, name: str, scale: str = "") -> None:
    if not page.get_by_label("Add a LoRA").is_visible():
        page.locator("#lora-fold > summary").click()
    page.get_by_label("Add a LoRA").select_option(name)
    if scale:
        page.get_by_label(f"Scale of {name}").fill(scale)


def choose_model(page: Page, name: str) -> None:
    if not page.get_by_label("Model").is_visible():
        page.locator("#settings-fold > summary").click()
    page.get_by_label("Model").select_option(name)


def asked_for(backend: FakeBackend) -> list[tuple[str, float]]:
    return [(use.file.name, use.scale) for use in backend.asked[-1].loras]


def test_those_that_are_chosen_are_used_with_their_scales(page: Page, backend: FakeBackend) -> None:
    add(page, "coffee", "0.8")
    add(page, "shoe")
    assert page.locator("#lora-add option").all_inner_texts() == ["All are used"]
    make(page, "a cup", seed=1)
    assert asked_for(backend) == [("coffee", 0.8), ("shoe", 1.0)]
    assert fact(page, "LoRAs") == "coffee 0.8, shoe 1"
    page.get_by_label("Remove coffee").click()
    make(page, "a cup", seed=2)
    assert asked_for(backend) == [("shoe", 1.0)]


def test_one_that_cannot_be_used_is_not_offered_and_one_for_another_model_waits_for_it(
    page: Page, backend: FakeBackend
) -> None:
    choose_model(page, "tiny")
    add(page, "shoe", "-1")
    assert page.locator("#lora-add option").all_inner_texts() == ["Choose", "coffee"]
    choose_model(page, "other")
    expect(page.get_by_label("Scale of shoe")).to_have_count(0)
    make(page, "a cup", seed=1)
    assert asked_for(backend) == []
    choose_model(page, "tiny")
    make(page, "a cup", seed=2)
    assert asked_for(backend) == [("shoe", -1.0)]


def test_a_picture_is_made_again_with_them_from_the_page_and_from_code(page: Page, backend: FakeBackend) -> None:
    add(page, "coffee", "0.5")
    make(page, "a cup", seed=1)
    page.get_by_label("Remove coffee").click()
    make(page, "a cup", seed=2)
    page.locator(".print").nth(1).click()
    page.get_by_role("button", name="Code").click()
    assert json.dumps([{"name": "coffee", "scale": 0.5}]).replace(" ", "") in page.locator("#code-text").inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Use again").click()
    expect(page.get_by_label("Scale of coffee")).to_have_value("0.5")
    make(page, "another cup", seed=3)
    assert asked_for(backend) == [("coffee", 0.5)]


def test_they_come_along_with_a_picture_to_start_from(page: Page, backend: FakeBackend) -> None:
    add(page, "coffee", "0.5")
    page.get_by_text("Start from a picture").click()
    page.locator("#input-picture input").set_input_files(photo())
    make(page, "a cup", seed=1)
    assert backend.asked[-1].uploads is not None
    assert asked_for(backend) == [("coffee", 0.5)]


def test_a_scale_that_is_none_or_too_large_is_told_at_the_place(page: Page, backend: FakeBackend) -> None:
    add(page, "coffee", "")
    page.get_by_label("Scale of coffee").fill("")
    page.locator("#make").click()
    expect(page.locator("#loras-fault")).to_contain_text("needs a number for coffee")
    page.get_by_label("Scale of coffee").fill("9")
    page.locator("#make").click()
    expect(page.locator("#loras-fault")).not_to_be_empty()
    expect(page.get_by_label("Scale of coffee")).to_have_attribute("aria-invalid", "true")
    assert backend.asked == []

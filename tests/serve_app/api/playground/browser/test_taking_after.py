"""Taking after a picture: it is there for models that can, and what is chosen is what is asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from deployments.engine.protocol.settings import ReferenceSettings
from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.serve_app.api.playground.browser.test_control import choose_model
from tests.serve_app.api.playground.browser.test_texts import ask_again, save_files
from tests.serve_app.api.playground.browser.visits import PATIENCE_MS, fact, make, photo
from tests.serve_app.fakes import OTHER, STYLED, TINY, TWO_STYLES, FakeBackend
from tests.serve_app.servers import http_server


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(models=(TINY, STYLED))


def take_after(page: Page, scale: str = "0.6") -> None:
    """Gives a picture to take after, and says how strongly."""
    page.get_by_text("Take after a picture").click()
    page.locator("#reference-picture input").set_input_files(photo())
    page.get_by_label("How strongly to take after it").fill(scale)


def test_a_picture_and_its_strength_are_asked_for(page: Page, backend: FakeBackend) -> None:
    expect(page.locator("#reference-options")).to_be_hidden()
    take_after(page)
    make(page, "a cup", seed=1)
    (request,) = backend.asked
    assert request.uploads is not None
    assert (request.uploads.references, request.uploads.task) == ((photo()["buffer"],), "text-to-image")
    assert request.params.reference == ReferenceSettings(adapter="style", scale=0.6)
    assert (fact(page, "Model"), fact(page, "Kind")) == ("styled", "after a picture")


def test_a_model_that_cannot_leaves_it_out_and_use_again_brings_it_back(page: Page, backend: FakeBackend) -> None:
    take_after(page)
    make(page, "a cup", seed=1)
    choose_model(page, "tiny")
    expect(page.locator("#reference-fold")).to_be_hidden()
    make(page, "a cup", seed=2)
    assert (backend.asked[-1].uploads, backend.asked[-1].params.reference) == (None, None)
    page.reload()
    page.locator(".print").last.click()
    page.get_by_role("button", name="Use again").click()
    expect(page.locator("#reference-picture img")).to_be_visible()
    expect(page.get_by_label("How strongly to take after it")).to_have_value("0.6")
    make(page, "another cup", seed=3)
    assert backend.asked[-1].params.reference == backend.asked[0].params.reference
    assert backend.asked[-1].uploads == backend.asked[0].uploads


def test_what_is_wrong_with_it_is_told_there(page: Page, backend: FakeBackend) -> None:
    take_after(page, "3")
    page.get_by_label("Prompt", exact=True).fill("a cup")
    page.locator("#make").click()
    expect(page.locator("#reference-fault")).to_have_text("must be at most 2.0")
    assert backend.asked == []


@pytest.mark.parametrize("language", ["curl", "Python", "OpenAI"])
def test_copied_code_takes_after_the_same_picture(
    language: str, page: Page, backend: FakeBackend, tmp_path: Path
) -> None:
    page.get_by_text("Start from a picture").click()
    page.locator("#input-picture input").set_input_files(photo())
    take_after(page)
    make(page, "a cup", seed=7)
    page.get_by_role("button", name="Code").click()
    page.get_by_role("tab", name=language).click()
    save_files(page, tmp_path)
    ask_again(page, language, tmp_path)
    # What is equal in everything, its pictures too, comes from the cache.
    (request,) = backend.asked
    assert request.params.reference == ReferenceSettings(adapter="style", scale=0.6)


def test_openais_package_cannot_say_it_without_a_picture_to_start_from_and_the_code_says_so(page: Page) -> None:
    take_after(page)
    make(page, "a cup", seed=7)
    page.get_by_role("button", name="Code").click()
    expect(page.locator("#code-files button")).to_have_count(1)
    page.get_by_role("tab", name="OpenAI").click()
    expect(page.locator("#code-text")).to_contain_text("Without the picture to take after")
    expect(page.locator("#code-files button")).to_have_count(0)


@pytest.fixture
def elsewhere(browser: Browser) -> Iterator[Page]:
    """A page of no server yet."""
    context = browser.new_context(reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)
    yield context.new_page()
    context.close()


def test_it_is_there_for_models_that_can_only_and_several_adapters_are_a_choice(elsewhere: Page) -> None:
    with http_server(create_api(DiffusionService(FakeBackend(models=(TINY, OTHER))))) as url:
        elsewhere.goto(url)
        elsewhere.locator(".example").first.wait_for()
        expect(elsewhere.locator("#reference-fold")).to_be_hidden()
    backend = FakeBackend(models=(TWO_STYLES,))
    with http_server(create_api(DiffusionService(backend))) as url:
        elsewhere.goto(url)
        elsewhere.locator(".example").first.wait_for()
        take_after(elsewhere)
        elsewhere.get_by_label("What looks at it").select_option("face")
        make(elsewhere, "a cup", seed=1)
    assert backend.asked[0].params.reference == ReferenceSettings(adapter="face", scale=0.6)

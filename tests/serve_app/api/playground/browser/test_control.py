"""Following a shape: what is seen of it is what is asked for, whichever way the model has changed."""

import pytest
from playwright.sync_api import Page, expect

from deployments.engine.protocol.request import Request
from tests.serve_app.api.playground.browser.visits import make, photo
from tests.serve_app.fakes import FakeBackend


def follow(page: Page, kind: str = "canny") -> None:
    """Gives a picture to follow, and waits for its hint."""
    page.get_by_text("Follow a shape").click()
    page.get_by_label("What to follow").select_option(kind)
    page.locator("#control-picture input").set_input_files(photo())
    page.locator("#control-hint img").wait_for()


def choose_model(page: Page, name: str) -> None:
    if not page.get_by_label("Model").is_visible():
        page.locator("#settings-fold > summary").click()
    page.get_by_label("Model").select_option(name)


def test_a_picture_that_the_model_cannot_follow_is_left_out_and_comes_back_with_another_model(
    page: Page, backend: FakeBackend
) -> None:
    follow(page, "depth")
    choose_model(page, "other")
    expect(page.locator("#control-fold")).to_be_hidden()
    make(page, "a cup", seed=1)
    assert backend.asked[-1].uploads is None
    choose_model(page, "tiny")
    expect(page.locator("#control-hint img")).to_be_visible()
    expect(page.get_by_label("What to follow")).to_have_value("depth")
    make(page, "a cup", seed=2)
    assert [control.type for control in backend.asked[-1].params.controls] == ["depth"]


def test_use_again_follows_the_same_shape_after_another_model_was_chosen(page: Page, backend: FakeBackend) -> None:
    choose_model(page, "tiny")
    follow(page, "depth")
    make(page, "a cup", seed=1)
    choose_model(page, "other")
    page.get_by_role("button", name="Use again").click()
    expect(page.get_by_label("Model")).to_have_value("tiny")
    expect(page.locator("#control-fold")).to_be_visible()
    expect(page.get_by_label("What to follow")).to_have_value("depth")
    expect(page.locator("#control-hint img")).to_be_visible()
    make(page, "another cup", seed=2)
    first, again = backend.asked
    assert again.params.controls == first.params.controls
    assert (again.uploads, again.params.model_name) == (first.uploads, first.params.model_name)


def test_an_example_takes_the_model_back_and_the_shapes_with_it(page: Page) -> None:
    choose_model(page, "other")
    expect(page.locator("#control-fold")).to_be_hidden()
    page.locator(".example").first.click()
    expect(page.locator(".print")).to_have_count(1)
    expect(page.get_by_label("Model")).to_have_value("")
    expect(page.locator("#control-fold")).to_be_visible()


def test_another_type_makes_another_hint_however_it_came_about(
    page: Page, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    hinted: list[str] = []

    async def make_hints(request: Request) -> tuple[bytes, ...]:
        hinted.extend(control.type for control in request.params.controls)
        return await FakeBackend.make_hints(backend, request)

    monkeypatch.setattr(backend, "make_hints", make_hints)
    follow(page, "depth")
    with page.expect_response("**/hint"):
        page.get_by_label("What to follow").select_option("canny")
    # A model that follows nothing has none made; the next one that does has.
    choose_model(page, "other")
    expect(page.locator("#control-fold")).to_be_hidden()
    with page.expect_response("**/hint"):
        choose_model(page, "tiny")
    page.locator("#control-hint img").wait_for()
    assert hinted == ["depth", "canny", "canny"]

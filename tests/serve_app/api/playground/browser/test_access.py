"""Nobody is shut out: what axe finds, the keyboard alone, and a phone."""

from importlib.resources import files
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.serve_app.api.playground.browser.visits import PATIENCE_MS, make, photo, watched
from tests.serve_app.fakes import FakeBackend, slow

AXE: Final = files("axe_playwright_python").joinpath("axe.min.js").read_text()
DESK: Final[Any] = {"viewport": {"width": 1280, "height": 860}}
PHONE: Final[Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def violations(page: Page) -> list[str]:
    """What axe-core finds on the page as it is now."""
    page.evaluate(AXE)
    result = page.evaluate("axe.run()")
    assert "color-contrast" in {each["id"] for each in result["passes"]}
    return [f"{each['id']}: {[node['html'] for node in each['nodes']]}" for each in result["violations"]]


def open_everything(page: Page) -> None:
    for fold in page.locator("summary:visible").all():
        fold.click()
    page.locator("#input-picture input").set_input_files(photo())
    page.locator("#control-picture input").set_input_files(photo())
    page.locator("#control-hint img").wait_for()
    page.get_by_label("Size", exact=True).select_option("custom")


@pytest.mark.parametrize(("colours", "device"), [("light", DESK), ("dark", PHONE)], ids=["desk", "phone"])
def test_axe_finds_nothing_in_any_state(
    colours: Any, device: Any, browser: Browser, url: str, backend: FakeBackend
) -> None:
    context = browser.new_context(color_scheme=colours, reduced_motion="reduce", **device)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(url)
    page.locator(".example").first.wait_for()
    found = {"first visit": violations(page)}
    open_everything(page)
    found["all open"] = violations(page)
    page.locator("#width").fill("250")
    page.locator("#make").click()
    page.locator("#fault").wait_for()
    found["refused"] = violations(page)
    page.locator("#width").fill("64")
    make(page, "a cup", num_images=2)
    found["made"] = violations(page)
    page.get_by_role("button", name="Paint a mask").click()
    found["mask"] = violations(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Code").click()
    found["code"] = violations(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Mark to compare").click()
    page.locator(".print").nth(1).click()
    page.get_by_role("button", name="Compare with marked").click()
    found["compare"] = violations(page)
    page.keyboard.press("Escape")
    page.locator("#server-button").click()
    found["server"] = violations(page)
    context.close()
    assert {state: each for state, each in found.items() if each} == {}


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def tab_to(page: Page, selector: str) -> None:
    """Presses Tab until the element has the focus, as a visitor would."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            shadow = page.evaluate("getComputedStyle(document.activeElement).boxShadow")
            assert "none" not in (outline, shadow) or outline != shadow, f"{selector} does not show its focus"
            return
    raise AssertionError(f"Tab never reaches {selector}")


def test_the_keyboard_alone_is_enough(page: Page, backend: FakeBackend) -> None:
    page.locator(".example").first.wait_for()
    tab_to(page, ".example")
    press(page, "Enter")
    expect(page.locator(".print")).to_have_count(1)
    expect(page.locator("#stage")).to_be_focused()
    page.locator(".skip").focus()
    press(page, "Enter")
    expect(page.locator("#prompt")).to_be_focused()
    press(page, "Control+a")
    page.keyboard.type("a red cup")
    press(page, "Control+Enter")
    expect(page.locator(".print")).to_have_count(2)
    tab_to(page, ".stage .tools button:nth-of-type(2)")
    press(page, "Enter")
    expect(page.locator("#input-picture img")).to_be_visible()
    tab_to(page, "#mask-button")
    press(page, "Enter")
    tab_to(page, "#mask-area")
    page.keyboard.type("Top")
    tab_to(page, "#mask-area-apply")
    press(page, "Enter")
    tab_to(page, "#mask-done")
    press(page, "Enter")
    expect(page.locator("#mask-window")).to_be_hidden()
    press(page, "Control+Enter")
    expect(page.locator(".print")).to_have_count(3)
    uploads = backend.asked[-1].uploads
    assert uploads is not None
    assert uploads.task == "inpaint"
    backend.script = slow
    press(page, "Control+Enter")
    expect(page.get_by_text("Step 1 of 50")).to_be_visible()
    press(page, "Escape")
    expect(page.get_by_role("heading", name="Cancelled")).to_be_visible()


def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Browser, url: str) -> None:
    context = browser.new_context(reduced_motion="reduce", **PHONE)
    context.set_default_timeout(PATIENCE_MS)
    with watched(context.new_page(), url) as page:
        page.goto(url)
        page.locator(".example").first.tap()
        page.locator(".stage .facts").wait_for()
        expect(page.locator(".stage .frame")).to_be_in_viewport()
        open_everything(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("button", name="Paint a mask").tap()
        box = page.locator("#mask-window").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        small = page.locator("button:visible").evaluate_all(
            "(all) => all.filter((each) => each.getBoundingClientRect().height < 24).map((each) => each.textContent)"
        )
        assert small == []
    context.close()


@pytest.mark.parametrize(("system", "paper"), [("light", "rgb(250, 247, 244)"), ("dark", "rgb(21, 17, 16)")])
def test_colours_are_the_systems_until_somebody_chooses(
    system: Any, paper: str, context: BrowserContext, url: str
) -> None:
    page = context.new_page()
    page.emulate_media(color_scheme=system)
    page.goto(url)
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == paper
    button = page.locator("#theme-button")
    while button.inner_text() != {"light": "Dark", "dark": "Light"}[system]:
        button.click()
    assert page.evaluate(colour) != paper
    page.reload()
    assert page.evaluate(colour) != paper

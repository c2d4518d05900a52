"""Beginning, stopping and repeating: one run at a time, and each ends as it should."""

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from deployments.engine.protocol.errors import Overloaded
from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.serve_app.api.playground.browser.visits import develop, fact, make, photo, watched
from tests.serve_app.fakes import FakeBackend, refusing, slow, success
from tests.serve_app.servers import free_port, http_server


def test_whatever_is_pressed_twice_begins_one_run(page: Page, backend: FakeBackend) -> None:
    page.get_by_text("Start from a picture").click()
    # How large the pictures will be is known only when the one that they start from has been read.
    page.locator("#input-picture input").set_input_files(photo(size=(1200, 1200)))
    page.locator("#prompt").fill("a cup")
    backend.script = develop
    page.evaluate("for (let i = 0; i < 3; i++) document.getElementById('form').requestSubmit()")
    expect(page.locator(".print")).to_have_count(1)
    expect(page.locator("#make")).to_be_visible()
    assert (len(backend.asked), backend.most_running) == (1, 1)


def test_try_again_begins_one_run(page: Page, backend: FakeBackend) -> None:
    backend.script = refusing(Overloaded("too many requests are waiting", 7.0))
    page.locator("#make").click()
    again = page.get_by_role("button", name="Try again")
    again.wait_for()
    backend.script = develop
    again.evaluate("(button) => { button.click(); button.click(); }")
    expect(page.locator(".print")).to_have_count(1)
    expect(page.locator("#make")).to_be_visible()
    assert (len(backend.asked), backend.most_running) == (2, 1)


@pytest.mark.parametrize(
    ("place", "keys"), [("#prompt", ["Control", "Enter"]), ("#seed", ["Enter"]), ("#make", ["Enter"])]
)
def test_keys_that_are_held_down_begin_one_run(place: str, keys: list[str], page: Page, backend: FakeBackend) -> None:
    page.locator("#settings-fold > summary").click()
    page.locator("#prompt").fill("a cup")
    page.locator(place).focus()
    for key in keys:
        page.keyboard.down(key)
    expect(page.locator(".print")).to_have_count(1)
    page.locator(place).focus()
    for _ in range(3):
        page.keyboard.down("Enter")
    for key in keys:
        page.keyboard.up(key)
    page.locator(place).focus()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".print")).to_have_count(2)
    assert len(backend.asked) == 2


def test_what_is_stopped_before_it_was_sent_is_not_sent(page: Page, backend: FakeBackend) -> None:
    page.get_by_text("Start from a picture").click()
    page.locator("#input-picture input").set_input_files(photo(size=(1200, 1200)))
    page.evaluate(
        """() => {
          document.getElementById("form").requestSubmit();
          document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
        }"""
    )
    expect(page.get_by_role("heading", name="Cancelled")).to_be_visible()
    expect(page.locator("#make")).to_be_visible()
    assert backend.asked == []


def test_keys_of_a_writing_system_that_is_being_composed_are_not_taken_for_the_pages(
    page: Page, backend: FakeBackend
) -> None:
    backend.script = slow
    page.locator("#make").click()
    expect(page.get_by_text("Step 1 of 50")).to_be_visible()
    press = "([key, more]) => prompt.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, ...more }))"
    page.evaluate(f"const prompt = document.getElementById('prompt'); ({press})(['Escape', {{ isComposing: true }}])")
    expect(page.locator("#cancel")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Cancelled")).to_be_visible()
    page.evaluate(
        f"""const prompt = document.getElementById('prompt');
        ({press})(['Enter', {{ isComposing: true, ctrlKey: true }}])"""
    )
    assert len(backend.asked) == 1


def test_a_server_that_does_not_hear_that_it_shall_stop_is_left(page: Page, backend: FakeBackend) -> None:
    unanswered: list[Route] = []
    page.route("**/requests/*", lambda route: unanswered.append(route))
    backend.script = slow
    page.locator("#make").click()
    expect(page.get_by_text("Step 1 of 50")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Cancelled")).to_be_visible(timeout=30_000)
    assert len(unanswered) == 1


def test_one_picture_of_several_is_used_again_alone(page: Page, backend: FakeBackend) -> None:
    make(page, "a cup", num_images=3, seed=5)
    page.locator(".stage .frame").nth(2).click()
    page.get_by_role("button", name="Use again").click()
    expect(page.locator("#num_images")).to_have_value("1")
    page.locator("#make").click()
    expect(page.locator(".print")).to_have_count(4)
    assert fact(page, "Seed") == "7"
    assert (backend.asked[-1].params.seed, backend.asked[-1].params.num_images) == (7, 1)


def test_a_first_picture_whose_connection_broke_can_be_tried_again_when_the_server_is_back(
    context: BrowserContext, service: DiffusionService, backend: FakeBackend
) -> None:
    port, page = free_port(), context.new_page()
    backend.script = slow
    with http_server(create_api(service), port) as url, watched(page, url):
        page.goto(url)
        page.locator(".example").first.click()
        expect(page.get_by_text("Step 1 of 50")).to_be_visible()
    expect(page.get_by_role("heading", name="The connection was lost")).to_be_visible()
    backend.script = success
    with http_server(create_api(service), port):
        expect(page.locator("#server-text")).to_have_text("Ready")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".print")).to_have_count(1)


def test_a_fault_of_the_page_is_not_taken_for_a_lost_connection(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.locator(".example").first.wait_for()
    page.evaluate(
        """const set = () => { throw new TypeError("a slip"); };
        Object.defineProperty(HTMLProgressElement.prototype, "value", { set });"""
    )
    page.locator("#make").click()
    expect(page.locator("#stage")).to_contain_text("Something is wrong with this page")
    expect(page.locator("#make")).to_be_visible()
    assert errors == ["a slip"]

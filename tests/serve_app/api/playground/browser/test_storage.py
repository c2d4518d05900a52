"""What the browser keeps, or will not keep: told where it matters, and nothing is held that nobody sees."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import BrowserContext, Page, expect

from serve_app.api.application import create_api
from serve_app.config.secret import Secret
from serve_app.gateway.api_keys import Keyring, generate_key, hash_of
from serve_app.gateway.setup import Gateway
from serve_app.service import DiffusionService
from tests.serve_app.api.playground.browser.visits import develop, make, photo, watched
from tests.serve_app.fakes import FakeBackend, refusing, success
from tests.serve_app.servers import http_server

# As browsers do where cookies and site data are blocked.
BLOCKED = """
for (const name of ["sessionStorage", "localStorage", "indexedDB"]) {
  Object.defineProperty(window, name, { get() { throw new DOMException("Access is denied", "SecurityError"); } });
}
"""

# A database that opens, but fails `name` whenever `broken` is set.
BREAKABLE = """
window.broken = null;
for (const name of ["put", "delete", "clear"]) {
  const work = IDBObjectStore.prototype[name];
  IDBObjectStore.prototype[name] = function (...given) {
    if (window.broken) throw new DOMException("It failed", window.broken);
    return work.apply(this, given);
  };
}
"""

# Which object URLs there are.
COUNTED = """
window.held = new Set();
const { createObjectURL, revokeObjectURL } = URL;
URL.createObjectURL = (blob) => {
  const url = createObjectURL.call(URL, blob);
  held.add(url);
  return url;
};
URL.revokeObjectURL = (url) => {
  held.delete(url);
  revokeObjectURL.call(URL, url);
};
"""


def test_where_storage_is_blocked_the_page_works_with_a_key_and_tells_what_is_not_kept(
    context: BrowserContext, service: DiffusionService, backend: FakeBackend, tmp_path: Path
) -> None:
    key, file = generate_key(), tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump([{"id": "maker", "hash": hash_of(key), "tenant": "acme"}]))
    page = context.new_page()
    page.add_init_script(BLOCKED)
    with http_server(create_api(service, gateway=Gateway(keys=Keyring(Secret(file=file))))) as url, watched(page, url):
        page.goto(url)
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Use this key").click()
        page.locator("#theme-button").click()
        make(page, "a cup", seed=1)
        assert backend.asked[0].tenant == "acme"
        expect(page.locator("#sheet-note")).to_have_text("This browser keeps nothing: the sheet ends with this page.")
        expect(page.locator("#sheet-note")).to_be_visible()
        page.get_by_role("button", name="Delete").click()
        expect(page.locator(".print")).to_have_count(0)


@pytest.fixture
def breakable(context: BrowserContext, url: str) -> Iterator[Page]:
    page = context.new_page()
    page.add_init_script(BREAKABLE)
    with watched(page, url):
        page.goto(url)
        page.locator(".example").first.wait_for()
        yield page


def clear(page: Page) -> None:
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Really clear all?").click()


def test_that_there_is_no_room_is_told_until_what_is_not_kept_is_gone(breakable: Page) -> None:
    note = breakable.locator("#sheet-note")
    breakable.evaluate("broken = 'QuotaExceededError'")
    make(breakable, "a cup", seed=1)
    expect(note).to_contain_text("There is no room left in this browser")
    breakable.evaluate("broken = null")
    make(breakable, "a cup", seed=2)
    expect(note).to_contain_text("There is no room left in this browser")
    clear(breakable)
    expect(note).to_have_text("Your pictures are kept here, in this browser.")
    expect(breakable.locator("#sheet-title")).to_be_focused()
    make(breakable, "a cup", seed=3)
    expect(note).to_be_hidden()


def test_a_picture_that_is_not_kept_can_be_deleted_all_the_same(breakable: Page) -> None:
    breakable.evaluate("broken = 'UnknownError'")
    make(breakable, "a cup", seed=1, num_images=2)
    expect(breakable.locator("#sheet-note")).to_contain_text("could not save the newest pictures")
    for left in (1, 0):
        breakable.get_by_role("button", name="Delete").click()
        expect(breakable.locator(".print")).to_have_count(left)
    expect(breakable.locator("#sheet-note")).to_have_text("Your pictures are kept here, in this browser.")


def test_what_was_cleared_is_gone_from_the_stage_too_and_does_not_come_back(page: Page) -> None:
    make(page, "a cup", seed=1, num_images=3)
    clear(page)
    expect(page.locator(".stage .facts")).to_have_count(0)
    expect(page.locator(".example").first).to_be_visible()
    page.reload()
    page.locator(".example").first.wait_for()
    assert page.locator(".print").count() == 0


@pytest.mark.parametrize("waiting", ["Delete", "Mark to compare"])
def test_a_run_that_is_cleared_while_its_picture_is_worked_with_is_not_saved_again(
    waiting: str, breakable: Page
) -> None:
    make(breakable, "a cup", seed=1, num_images=2)
    breakable.get_by_role("button", name="Mark to compare").click()
    # What is clicked in one turn is begun before any of it has ended.
    breakable.get_by_role("button", name="Clear").click()
    breakable.evaluate(
        """(name) => {
          const button = [...document.querySelectorAll(".tools button")].find((each) => each.textContent === name);
          document.getElementById("sheet-clear").click();
          button?.click();
        }""",
        waiting,
    )
    expect(breakable.locator(".print")).to_have_count(0)
    expect(breakable.locator(".example").first).to_be_visible()
    breakable.reload()
    breakable.locator(".example").first.wait_for()
    assert breakable.locator(".print").count() == 0
    make(breakable, "a cup", seed=2)
    expect(breakable.get_by_role("button", name="Mark to compare")).to_be_visible()


@pytest.mark.parametrize("count", [1, 2])
def test_what_cannot_be_deleted_is_told_and_stays(count: int, breakable: Page) -> None:
    make(breakable, "a cup", seed=1, num_images=count)
    breakable.evaluate("broken = 'UnknownError'")
    breakable.get_by_role("button", name="Delete").click()
    expect(breakable.locator("#sheet-note")).to_contain_text("could not delete that")
    expect(breakable.locator("#news")).to_contain_text("could not delete that")
    clear(breakable)
    expect(breakable.locator(".print")).to_have_count(count)
    expect(breakable.locator(".stage .facts")).to_be_visible()
    breakable.evaluate("broken = null")
    clear(breakable)
    expect(breakable.locator(".print")).to_have_count(0)
    expect(breakable.locator("#sheet-note")).to_have_text("Your pictures are kept here, in this browser.")


def test_a_file_is_held_as_long_as_it_is_shown_and_no_longer(
    context: BrowserContext, url: str, backend: FakeBackend
) -> None:
    page = context.new_page()
    page.add_init_script(COUNTED)

    def check() -> None:
        page.wait_for_function(
            """() => {
              const shown = new Set([...document.images].map((image) => image.src));
              return [...held].every((url) => shown.has(url));
            }"""
        )

    with watched(page, url):
        page.goto(url)
        backend.script = develop
        make(page, "a cup", seed=1, num_images=3)
        check()
        make(page, "a cup", seed=11, num_images=1)
        page.locator(".print").nth(1).click()
        check()
        page.get_by_role("button", name="Mark to compare").click()
        page.locator(".print").first.click()
        page.get_by_role("button", name="Compare with marked").click()
        page.keyboard.press("Escape")
        expect(page.locator("#compare-window")).to_be_hidden()
        check()
        page.get_by_role("button", name="Use as input").click()
        page.get_by_text("Follow a shape").click()
        page.locator("#control-picture input").set_input_files(photo())
        page.locator("#control-hint img").wait_for()
        for _ in range(2):
            page.get_by_role("button", name="Remove").first.click()
        check()
        # Another run is looked at while one is made: nobody sees its previews.
        page.locator("#seed").fill("21")
        page.locator("#make").click()
        page.locator(".print").last.click()
        expect(page.locator(".print")).to_have_count(5)
        check()
        backend.script = refusing(RuntimeError("it broke"))
        page.locator("#seed").fill("31")
        page.locator("#make").click()
        page.get_by_role("heading", name="Nothing was made").wait_for()
        check()
        backend.script = success
        page.locator(".print").first.click()
        page.get_by_role("button", name="Delete").click()
        expect(page.locator(".print")).to_have_count(4)
        check()
        page.locator(".print").nth(1).click()
        page.get_by_role("button", name="Delete").click()
        expect(page.locator(".print")).to_have_count(3)
        check()
        clear(page)
        expect(page.locator(".print")).to_have_count(0)
        check()

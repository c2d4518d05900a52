"""Texts stay texts: on the page, in the history, and in the code that is copied."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect

from deployments.engine.protocol.errors import GenerationFailed
from serve_app.service import DiffusionService
from tests.serve_app.api.playground.browser.visits import make, photo
from tests.serve_app.fakes import FakeBackend, refusing


@pytest.fixture
def service(backend: FakeBackend) -> DiffusionService:
    """Without a cache: what is asked for again is made again."""
    return DiffusionService(backend)


HOSTILE = [
    "<img src=x onerror=\"document.title='gone'\"><script>document.title='gone'</script>",
    "\"'`$(touch gone)`;{{7*7}}${7*7}</textarea></pre>\\'\\\"\n@/etc/passwd <b>\u202eright to left\u2066 \U0001f3fa",
    "a" * 900,
]


@pytest.mark.parametrize("prompt", HOSTILE, ids=["markup", "quotes", "long"])
def test_a_prompt_is_shown_as_it_was_written_and_nothing_of_it_runs(
    prompt: str, page: Page, backend: FakeBackend
) -> None:
    make(page, prompt, seed=1)
    page.get_by_role("button", name="Mark to compare").click()
    make(page, f"{prompt} again", seed=1)
    page.get_by_role("button", name="Compare with marked").click()
    assert page.locator("#differences tbody td").nth(1).evaluate("(each) => each.textContent") == prompt
    page.keyboard.press("Escape")
    page.reload()
    expect(page.locator(".print")).to_have_count(2)
    page.locator(".print").nth(1).click()
    assert page.locator(".caption").evaluate("(each) => each.textContent") == prompt
    assert backend.asked[0].params.prompt == prompt
    backend.script = refusing(GenerationFailed(prompt))
    page.locator("#make").click()
    expect(page.locator("#fault")).to_be_visible()
    assert page.title() == "Darkroom"
    assert page.locator("img[src='x'], b, main script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_browser_itself_refuses_to_read_a_text_as_markup(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    page.goto(url)
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")


def ask_again(page: Page, language: str, folder: Path) -> None:
    page.get_by_role("tab", name=language).click()
    code = page.locator("#code-text").evaluate("(each) => each.textContent")
    command = ["bash", "-euc", code] if language == "curl" else [sys.executable, "-c", code]
    told = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, env=os.environ | {"NO_PROXY": "*"}
    )
    assert told.returncode == 0, told.stderr
    with Image.open(io.BytesIO((folder / "picture.png").read_bytes())) as picture:
        assert picture.format == "PNG"
    assert {path.name for path in folder.iterdir()} <= {
        "picture.png",
        "input.png",
        "mask-openai.png",
        "mask.png",
        "control.png",
        "reference.png",
    }


def save_files(page: Page, folder: Path) -> None:
    for button in page.locator("#code-files button").all():
        with page.expect_download() as saving:
            button.click()
        saving.value.save_as(folder / saving.value.suggested_filename)


@pytest.mark.parametrize("language", ["curl", "Python", "OpenAI"])
def test_copied_code_asks_for_the_same_picture(
    language: str, page: Page, context: BrowserContext, backend: FakeBackend, tmp_path: Path
) -> None:
    make(page, HOSTILE[1], seed=7, num_images=2)
    page.get_by_role("button", name="Code").click()
    ask_again(page, language, tmp_path)
    first, again = (request.params.model_dump() for request in backend.asked)
    assert again == first | {"num_images": 1}
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#code-text").evaluate(
        "(e) => e.textContent"
    )


@pytest.mark.parametrize("language", ["curl", "Python", "OpenAI"])
def test_copied_code_with_pictures_reads_the_files_that_are_saved_beside_it(
    language: str, page: Page, backend: FakeBackend, tmp_path: Path
) -> None:
    page.get_by_text("Start from a picture").click()
    page.locator("#input-picture input").set_input_files(photo())
    page.get_by_role("button", name="Paint a mask").click()
    page.get_by_label("Area").select_option("Left half")
    page.get_by_role("button", name="Apply the area").click()
    page.get_by_role("button", name="Use this mask").click()
    page.get_by_text("Follow a shape").click()
    page.locator("#control-picture input").set_input_files(photo())
    page.locator("#control-hint img").wait_for()
    make(page, "a cup", seed=7)
    page.get_by_role("button", name="Code").click()
    page.get_by_role("tab", name=language).click()
    save_files(page, tmp_path)
    ask_again(page, language, tmp_path)
    first, again = backend.asked
    assert first.params == again.params
    assert first.uploads is not None
    assert again.uploads is not None
    assert (again.uploads.image, again.uploads.hints) == (first.uploads.image, first.uploads.hints)
    assert again.uploads.task == first.uploads.task == "inpaint"

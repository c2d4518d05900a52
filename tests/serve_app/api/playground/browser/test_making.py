"""Making pictures on the page: what is shown on the way, what can be done with them, and what is there afterwards."""

import io
import re
import threading
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect

from deployments.engine.protocol.errors import Filtered, NumericalFailure, Overloaded
from deployments.engine.protocol.events import ImageDone, ImageFailed
from deployments.engine.protocol.safety import Finding
from serve_app.service import DiffusionService
from tests.serve_app.api.playground.browser.visits import develop, fact, make, photo
from tests.serve_app.fakes import FakeBackend, failing, refusing, slow, success


def test_a_first_visit_makes_its_picture_with_one_click(page: Page, backend: FakeBackend) -> None:
    place_seen, preview_seen = threading.Event(), threading.Event()
    backend.script = lambda request: develop(request, place_seen, preview_seen)
    page.locator(".example").first.click()
    progress = page.locator(".progress-text")
    expect(progress).to_have_text("2 before this, starts in about 12 s")
    place_seen.set()
    expect(progress).to_have_text("Step 2 of 4, about 3 s left")
    expect(page.locator(".frame[data-state=preview] img")).to_be_visible()
    expect(page.locator(".stage .caption")).to_be_visible()
    preview_seen.set()
    expect(page.locator(".print")).to_have_count(1)
    expect(page.locator("#news")).to_have_text("The picture is ready")
    asked = backend.asked[0].params
    assert page.locator("#prompt").input_value() == asked.prompt
    assert fact(page, "Seed") == str(asked.seed or backend.asked[0].seed_of(0))
    assert backend.asked[0].previews == 4


def test_what_is_chosen_is_what_is_asked_for(page: Page, backend: FakeBackend) -> None:
    page.get_by_text("Negative prompt").click()
    page.get_by_text("Settings").click()
    page.get_by_label("Style").select_option("luxury")
    page.get_by_label("Size", exact=True).select_option("custom")
    page.get_by_label("Model").select_option("other")
    page.get_by_label("Sampler").select_option("ddim")
    page.get_by_label("Size", exact=True).select_option("custom")
    chosen: dict[str, Any] = {
        "negative_prompt": "blur",
        "width": 64,
        "height": 128,
        "num_images": 3,
        "num_inference_steps": 7,
        "guidance_scale": 2.5,
        "seed": 41,
    }
    make(page, "a cup", **chosen)
    asked = backend.asked[0].params.model_dump()
    wanted = chosen | {"prompt": "a cup, luxury photography, premium materials, sophisticated composition"}
    wanted |= {"style_preset": "luxury", "model_name": "other", "sampler": "ddim"}
    assert {name: asked[name] for name in wanted} == wanted
    expect(page.locator(".stage .frame")).to_have_count(3)
    page.locator(".stage .frame").nth(2).click()
    assert fact(page, "Seed") == "43"


def test_an_advertisements_size_is_asked_for_by_its_name(page: Page, backend: FakeBackend) -> None:
    size = page.get_by_label("Size", exact=True)
    size.select_option(label="medium rectangle, 300 × 250")
    make(page, "a cup")
    assert backend.asked[0].params.ad_format == "medium_rectangle"
    size.select_option("")
    page.get_by_role("button", name="Use again").click()
    expect(size).to_have_value("ad format medium_rectangle")


def test_cancelling_frees_the_place_and_the_next_picture_can_be_made(page: Page, backend: FakeBackend) -> None:
    backend.script = slow
    page.get_by_label("Prompt", exact=True).fill("a cup")
    page.locator("#make").click()
    expect(page.get_by_text("Step 1 of 50")).to_be_visible()
    page.wait_for_timeout(450)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="Cancelled")).to_be_visible()
    assert backend.cancelled
    backend.script = success
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".print")).to_have_count(1)


def test_the_history_outlives_the_page_with_everything_that_made_it(
    page: Page, context: BrowserContext, backend: FakeBackend
) -> None:
    page.get_by_text("Start from a picture").click()
    page.locator("#input-picture input").set_input_files(photo())
    make(page, "a red cup", strength=0.3, seed=5)
    page.reload()
    expect(page.locator(".print")).to_have_count(1)
    expect(page.locator(".caption")).to_have_text("a red cup")
    page.get_by_role("button", name="Use again").click()
    expect(page.locator("#input-picture img")).to_be_visible()
    page.locator("#make").click()
    expect(page.locator(".print")).to_have_count(2)
    first, again = backend.asked[0], backend.asked[-1]
    assert first.params == again.params
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".print")).to_have_count(1)
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Really clear all?").click()
    expect(page.locator(".print")).to_have_count(0)
    page.reload()
    expect(page.locator(".example").first).to_be_visible()


def test_one_picture_of_several_is_deleted_and_the_others_stay(page: Page) -> None:
    make(page, "a cup", num_images=3, seed=5)
    page.locator(".print").nth(1).click()
    assert fact(page, "Seed") == "6"
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".stage .frame")).to_have_count(2)
    page.reload()
    expect(page.locator(".print")).to_have_count(2)
    page.locator(".print").nth(1).click()
    assert fact(page, "Seed") == "7"


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted_and_other_files_are_refused(way: str, page: Page, backend: FakeBackend) -> None:
    page.get_by_text("Start from a picture").click()
    bring = """([way, type, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(bytes)], "a", { type }));
      const place = document.querySelector("#input-picture .drop");
      if (way === "drop") place.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
      else document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
    }"""
    page.evaluate(bring, [way, "text/html", [60]])
    expect(page.locator("#input-picture img")).to_be_hidden()
    if way == "drop":
        expect(page.locator("#input-picture .wrong")).to_contain_text("Only PNG, JPEG and WebP")
    page.evaluate(bring, [way, "image/png", list(photo()["buffer"])])
    expect(page.locator("#input-picture img")).to_be_visible()
    make(page, "a cup")
    uploads = backend.asked[0].uploads
    assert uploads is not None
    assert (uploads.task, uploads.image) == ("image-to-image", photo()["buffer"])


def test_a_picture_is_compared_with_another(page: Page) -> None:
    make(page, "a red cup", seed=1)
    page.get_by_role("button", name="Mark to compare").click()
    make(page, "a green cup", seed=2)
    expect(page.locator(".print")).to_have_count(2)
    page.get_by_role("button", name="Compare with marked").click()
    rows = page.locator("#differences tbody tr").all_inner_texts()
    assert [row.split("\t") for row in rows] == [["prompt", "a red cup", "a green cup"], ["seed", "1", "2"]]
    page.get_by_label("Where the second picture begins").fill("20")
    assert page.locator("#wipe").evaluate("(each) => each.style.getPropertyValue('--at')") == "20%"
    page.keyboard.press("Escape")
    expect(page.locator("#compare-window")).to_be_hidden()


def test_tokens_are_counted_as_the_server_counts_them(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("one two three")
    expect(page.locator("#prompt-count")).to_have_text("3 of 300 tokens")
    page.get_by_label("Prompt", exact=True).fill("word " * 301)
    expect(page.locator("#prompt-count")).to_have_text("301 of 300 tokens, too long")


def test_a_wrong_field_is_named_marked_and_focused(page: Page, backend: FakeBackend) -> None:
    page.get_by_label("Size", exact=True).select_option("custom")
    page.get_by_label("Width", exact=True).fill("250")
    page.get_by_label("Prompt", exact=True).fill("a cup")
    page.locator("#num_inference_steps").evaluate("(each) => (each.value = 999)")
    page.locator("#make").click()
    alert = page.locator("#fault")
    expect(alert).to_contain_text("Width must be a multiple of 8; nearest: 248 or 256")
    expect(alert).to_contain_text("Steps must be at most 150")
    expect(page.get_by_label("Width", exact=True)).to_be_focused()
    expect(page.get_by_label("Width", exact=True)).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#width-fault")).to_contain_text("multiple of 8")
    alert.get_by_role("button", name="Steps").click()
    expect(page.locator("#num_inference_steps")).to_be_focused()
    page.locator("#num_inference_steps").fill("5")
    page.get_by_label("Width", exact=True).fill("128")
    page.locator("#make").click()
    expect(page.locator(".print")).to_have_count(1)
    expect(alert).to_be_hidden()


def test_what_is_wrong_with_a_picture_or_its_settings_is_told_at_its_place(page: Page, backend: FakeBackend) -> None:
    page.get_by_text("Start from a picture").click()
    file = page.locator("#input-picture input")
    file.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.locator("#fault")).to_contain_text("This picture cannot be read")
    expect(page.locator("#input-picture img")).to_be_hidden()
    # Browsers can show it, whatever its name says; the server takes three formats.
    bitmap = io.BytesIO()
    Image.new("RGB", (64, 64)).save(bitmap, "BMP")
    file.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": bitmap.getvalue()})
    page.locator("#strength").evaluate("(each) => (each.value = 5)")
    page.locator("#make").click()
    expect(page.locator("#fault")).to_contain_text("How far to change it must be at most 1")
    page.locator("#strength").fill("0.5")
    page.locator("#make").click()
    expect(page.locator("#fault")).to_contain_text("Picture to start from")
    expect(file).to_be_focused()
    assert not backend.asked


@pytest.mark.parametrize(
    ("count", "rule"), [("0", "at least 1"), ("-1", "at least 1"), ("17", "at most 16"), ("1000000", "at most 16")]
)
def test_a_bad_count_is_told_at_its_field_in_the_servers_own_words(
    count: str, rule: str, page: Page, backend: FakeBackend
) -> None:
    page.locator("#num_images").fill(count)
    page.locator("#make").click()
    expect(page.locator("#num_images-fault")).to_contain_text(f"must be {rule}")
    expect(page.locator("#num_images")).to_be_focused()
    expect(page.locator(".example").first).to_be_visible()
    assert not backend.asked


def test_what_only_the_browser_can_know_is_told_as_well(page: Page, backend: FakeBackend) -> None:
    page.get_by_text("Settings").click()
    for wrong, told in (("abc", "must be a whole number"), ("9" * 18, "must be at most")):
        page.locator("#seed").fill(wrong)
        page.locator("#make").click()
        expect(page.locator("#seed-fault")).to_contain_text(told)
    assert not backend.asked


@pytest.mark.parametrize("count", [1, 2])
def test_what_fails_is_told_and_what_does_not_is_kept(count: int, page: Page, backend: FakeBackend) -> None:
    backend.script = failing(NumericalFailure("the image is black"), 0)
    page.locator("#num_images").fill(str(count))
    page.locator("#make").click()
    expect(page.locator("#stage")).to_contain_text("the image is black")
    expect(page.locator(".print")).to_have_count(count - 1)


def test_what_is_kept_back_is_told_and_what_is_flagged_is_a_fact(page: Page, backend: FakeBackend) -> None:
    backend.script = lambda request: [
        ImageFailed(request.id, 0, Filtered("nsfw"))
        if isinstance(event, ImageDone) and event.index == 0
        else replace(event, safety=Finding("flagged", "logos", 0.9))
        if isinstance(event, ImageDone)
        else event
        for event in success(request)
    ]
    page.locator("#num_images").fill("2")
    page.locator("#make").click()
    expect(page.locator("#stage")).to_contain_text("1 kept back: the image was filtered by this model's safety policy")
    assert fact(page, "Flagged") == "logos"
    page.reload()
    page.locator(".print").first.click()
    assert fact(page, "Flagged") == "logos"


def test_a_full_queue_says_when_to_come_back(page: Page, backend: FakeBackend) -> None:
    backend.script = refusing(Overloaded("too many requests are waiting", 7.0))
    page.locator("#make").click()
    expect(page.locator("#fault")).to_contain_text("It should work in 7 s")


def test_the_servers_state_is_at_a_glance(page: Page, service: DiffusionService) -> None:
    make(page, "a cup", seed=1)
    make(page, "a cup", seed=1)
    expect(page.locator(".facts")).to_contain_text("the cache")
    button = page.locator("#server-button")
    expect(button).to_have_text("Ready")
    button.click()
    figures = page.locator("#server-figures")
    expect(figures).to_contain_text(re.compile(r"Rows per call\s*2\.5"))
    expect(figures).to_contain_text("Found in the cache")

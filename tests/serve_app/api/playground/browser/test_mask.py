"""Painting a mask: with a pointer whose stroke is undone meanwhile, and with the keyboard."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.serve_app.api.playground.browser.visits import make, photo
from tests.serve_app.fakes import FakeBackend


@pytest.fixture
def painter(page: Page) -> Page:
    """The page, with a mask about to be painted over a picture of 64 x 64."""
    page.get_by_text("Start from a picture").click()
    page.locator("#input-picture input").set_input_files(photo())
    page.get_by_role("button", name="Paint a mask").click()
    return page


def painted(page: Page, backend: FakeBackend) -> Any:
    """Uses the mask, and returns the share of it that is white in each quarter of its height and width."""
    page.get_by_role("button", name="Use this mask").click()
    make(page, "a cup")
    uploads = backend.asked[-1].uploads
    assert uploads is not None
    assert uploads.mask is not None
    mask = np.asarray(Image.open(io.BytesIO(uploads.mask)).convert("L")) > 127
    return np.asarray(mask.reshape(4, 16, 4, 16).mean(axis=(1, 3)).round(2))


def move(page: Page, x: float, y: float) -> None:
    box = page.locator("#mask-canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)


def test_a_stroke_that_is_undone_while_it_is_drawn_is_gone_and_the_next_one_stays(
    painter: Page, backend: FakeBackend
) -> None:
    move(painter, 0.1, 0.9)
    painter.mouse.down()
    move(painter, 0.4, 0.9)
    painter.keyboard.press("Control+z")
    move(painter, 0.9, 0.9)
    painter.mouse.up()
    expect(painter.get_by_role("button", name="Undo")).to_be_disabled()
    move(painter, 0.1, 0.1)
    painter.mouse.down()
    move(painter, 0.9, 0.1)
    painter.mouse.up()
    move(painter, 0.5, 0.5)
    quarters = painted(painter, backend)
    assert quarters[0].min() > 0
    assert not quarters[1:].any()


def test_an_area_is_laid_under_a_stroke_that_goes_on(painter: Page, backend: FakeBackend) -> None:
    move(painter, 0.1, 0.1)
    painter.mouse.down()
    painter.locator("#mask-area").select_option("Bottom")
    painter.locator("#mask-area-apply").press("Enter")
    move(painter, 0.9, 0.1)
    painter.mouse.up()
    quarters = painted(painter, backend)
    assert quarters[0].min() > 0
    assert quarters[2:].min() == 1


def test_arrow_keys_choose_an_area_and_only_the_button_applies_it(painter: Page, backend: FakeBackend) -> None:
    area = painter.locator("#mask-area")
    area.focus()
    for _ in range(2):
        painter.keyboard.press("ArrowDown")
    expect(area).to_have_value("Top")
    expect(painter.get_by_role("button", name="Undo")).to_be_disabled()
    painter.get_by_role("button", name="Apply the area").press("Enter")
    expect(painter.locator("#news")).to_have_text("Top painted")
    assert painted(painter, backend).tolist() == [[1.0] * 4] * 2 + [[0.0] * 4] * 2


def test_only_the_first_button_paints(painter: Page) -> None:
    move(painter, 0.5, 0.5)
    painter.mouse.down(button="right")
    move(painter, 0.7, 0.5)
    painter.mouse.up(button="right")
    expect(painter.get_by_role("button", name="Undo")).to_be_disabled()


def test_a_mask_is_painted_on_the_picture_that_was_chosen_last(page: Page) -> None:
    # The first picture is read after the second one, as a much larger one is.
    page.evaluate(
        """() => {
          const read = window.createImageBitmap;
          window.createImageBitmap = async (blob) => {
            const picture = await read(blob);
            if (picture.width === 128) await new Promise((done) => setTimeout(done, 400));
            window.last = picture.width;
            return picture;
          };
        }"""
    )
    page.get_by_text("Start from a picture").click()
    file = page.locator("#input-picture input")
    file.set_input_files(photo(size=(128, 128)))
    file.set_input_files(photo(size=(64, 64)))
    page.wait_for_function("() => window.last === 128")
    page.get_by_role("button", name="Paint a mask").click()
    expect(page.locator("#mask-canvas")).to_have_attribute("width", "64")


def test_a_mask_cannot_be_painted_before_its_picture_has_been_read(page: Page) -> None:
    page.evaluate("() => { window.createImageBitmap = () => new Promise(() => {}); }")
    page.get_by_text("Start from a picture").click()
    page.locator("#input-picture input").set_input_files(photo())
    page.get_by_role("button", name="Paint a mask").click()
    expect(page.locator("#mask-window")).to_be_hidden()

"""The page over a real engine with a tiny checkpoint: a picture, a painted mask, a ControlNet with its hint, tokens."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from deployments.engine.protocol.spec import ModelSpec
from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.deployments.engine.tiny import save_tiny_checkpoint, save_tiny_controlnet
from tests.serve_app.api.playground.browser.visits import fact, make, photo
from tests.serve_app.servers import http_server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tiny")
    canny = save_tiny_controlnet(folder / "canny", seed=9)
    spec = ModelSpec("tiny", str(save_tiny_checkpoint(folder / "model")), controlnets={"canny": str(canny)})
    service = DiffusionService(models=[spec], device="cpu", dtype="float32", threads=1, max_rows=4)
    with http_server(create_api(service)) as url:
        yield url
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, service.close()).result()


@pytest.fixture(autouse=True)
def patience(page: Page) -> None:
    """The engine starts with the server, and the first test waits for it."""
    page.set_default_timeout(60_000)
    expect(page.locator("#server-text")).to_have_text("Ready", timeout=60_000)


def pixels(page: Page, selector: str) -> Any:
    data = page.locator(selector).evaluate(
        """async (image) => {
          await image.decode();
          const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
          canvas.getContext("2d").drawImage(image, 0, 0);
          const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return { pixels: [...data], shape: [height, width, 4] };
        }"""
    )
    return np.array(data["pixels"]).reshape(data["shape"])[:, :, :3]


def test_a_picture_is_made_with_previews_and_its_tokens_counted(page: Page) -> None:
    page.locator("#prompt").fill("a red cup on the picture")
    expect(page.locator("#prompt-count")).to_have_text("6 of 300 tokens")
    make(page, "a red cup on the picture", num_inference_steps=6, seed=1)
    assert (fact(page, "Model"), fact(page, "Steps"), fact(page, "Size")) == ("tiny", "6", "64 × 64")
    assert pixels(page, ".stage .frame img").std() > 1


def test_only_what_was_painted_is_made_anew(page: Page) -> None:
    page.get_by_text("Start from a picture").click()
    page.locator("#input-picture input").set_input_files(photo())
    page.get_by_role("button", name="Paint a mask").click()
    canvas = page.locator("#mask-canvas")
    box = canvas.bounding_box()
    assert box is not None

    def stroke(height: float) -> None:
        page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + height * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + height * box["height"], steps=4)
        page.mouse.up()

    stroke(0.25)
    stroke(0.75)
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Eraser").click()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.25 * box["height"])
    page.mouse.down()
    page.mouse.up()
    page.get_by_role("button", name="Use this mask").click()
    make(page, "a blue cat", num_inference_steps=4, seed=2)
    assert fact(page, "Kind") == "inpainted"
    before, after = pixels(page, "#input-picture img"), pixels(page, ".stage .frame img")
    changed = np.abs(before - after).max(axis=2) > 0
    assert changed[14:18, 16:40].any()
    # The second stroke was undone, and the eraser has taken the end of the first one.
    assert not changed[40:].any()
    assert not changed[16, 51]


def test_a_controlnet_follows_the_hint_that_is_shown(page: Page) -> None:
    make(page, "a cup", num_inference_steps=4, seed=3)
    free = pixels(page, ".stage .frame img")
    page.get_by_text("Follow a shape").click()
    page.locator("#control-picture input").set_input_files(photo())
    page.locator("#control-hint img").wait_for()
    hint = pixels(page, "#control-hint img")
    assert hint.shape == (64, 64, 3)
    assert hint[:, 30:34].max() == 255
    assert hint[:, 50:].max() == 0
    make(page, "a cup", num_inference_steps=4, seed=3)
    expect(page.locator(".print")).to_have_count(2)
    assert fact(page, "Kind") == "canny"
    assert np.abs(pixels(page, ".stage .frame img") - free).max() > 8

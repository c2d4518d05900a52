"""What visitors do on the page, and what they see."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from PIL import Image
from playwright.sync_api import ConsoleMessage, FilePayload, Page, expect

from deployments.engine.protocol.events import Accepted, Finished, Preview, Progress
from deployments.engine.protocol.request import Request
from tests.serve_app.fakes import TIMINGS, Step, image

PATIENCE_MS: Final = 5_000

# What Chromium itself says of an answer that is no success, or of none.
_OF_THE_NETWORK: Final = "Failed to load resource"


@contextmanager
def watched(page: Page, url: str) -> Iterator[Page]:
    """Fails at the end for whatever the page has complained of, and for requests to others than `url`."""
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(_OF_THE_NETWORK):
            complaints.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if not _is_own(request.url, url) else None)
    yield page
    assert complaints == []


def _is_own(asked: str, url: str) -> bool:
    return asked.startswith((f"{url}/", f"blob:{url}/"))


def develop(request: Request, place_seen: Step = 0.3, preview_seen: Step = 0.3) -> list[Step]:
    """Waits behind two others, shows previews, and finishes: each when what was before it has been seen."""
    count = request.params.num_images
    previews = [Preview(request.id, index, 2, jpeg()) for index in range(count)]
    return [
        Accepted(request.id, 2, steps=4, seconds_to_start=12.0),
        place_seen,
        Progress(request.id, 2, 4, seconds_left=3.0),
        *previews,
        preview_seen,
        *(image(request, index) for index in range(count)),
        Finished(request.id, TIMINGS),
    ]


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "gray").save(buffer, "JPEG")
    return buffer.getvalue()


def photo(name: str = "photo.png", size: tuple[int, int] = (64, 64)) -> FilePayload:
    """A file to choose: left teal, right white."""
    picture, buffer = Image.new("RGB", size, "white"), io.BytesIO()
    picture.paste("teal", (0, 0, size[0] // 2, size[1]))
    picture.save(buffer, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": buffer.getvalue()}


def make(page: Page, prompt: str, **fields: Any) -> None:
    """Fills in the form, sends it, and waits for what comes of it."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for name, value in fields.items():
        field = page.locator(f"#{name}")
        if not field.is_visible():
            page.locator(f"details:has(#{name}) > summary").click()
        field.fill(str(value))
    before = page.locator(".print").count()
    page.locator("#make").click()
    expect(page.locator(".print")).not_to_have_count(before)
    page.locator(".stage .facts").wait_for()


def fact(page: Page, name: str) -> str:
    """What the page says of the chosen picture."""
    return page.locator(f".facts div:has(dt:text-is('{name}')) dd").inner_text()

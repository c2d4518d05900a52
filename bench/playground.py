"""Times the way of a first visitor: from the start of a server to a first picture in a browser; and takes screenshots.

Why: whoever tries Darkroom should see a picture within a minute. The server is the packaged `demo`, started as
`make serve` starts it, in fresh processes, with nothing kept from an earlier start; what has to be installed is
installed. The browser is Chromium without a window. The visitor clicks the first example as soon as it is there.

    python -m bench.playground                         half a minute
    python -m bench.playground --screenshots docs      also writes docs/playground-*.webp

The last line is one JSON document with everything.
"""

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from bench.card import card, print_card
from bench.processes import end_tree

READY: Final = "is ready at"
MADE: Final = ".stage .facts"
PATIENCE_MS: Final = 60_000
SETTLES_MS: Final = 900
WEBP_QUALITY: Final = 86

PROMPTS: Final = (
    "a red cup on a blue background",
    "a large pink heart on a purple background",
    "a green bottle on a yellow background",
    "a white ring on a red background",
    "a purple shoe on a yellow background",
    "a cyan box on a pink background",
)
GRID: Final = "a gift box on a blue background"

DESK: Final[Any] = {"viewport": {"width": 1440, "height": 900}}
PHONE: Final[Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


@contextmanager
def served() -> Iterator[str]:
    """The packaged demo on a port of its own, ready; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as cache:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.cli", "serve", "--config", "demo", "--port", str(port)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XDG_CACHE_HOME": cache, "OMP_WAIT_POLICY": "passive"},
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            if READY not in said:
                raise SystemExit(f"the server did not start: {said}")
            yield f"http://127.0.0.1:{port}"
        finally:
            end_tree(process, subprocess.Popen.terminate)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium."""
    program = shutil.which("chromium")
    if program is None:
        raise SystemExit("there is no chromium; sh .ci/packages installs it")
    # Its sandbox needs rights that root gives up by being root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


def open_page(browser: Browser, url: str, **device: Any) -> Page:
    """A first visit."""
    page = browser.new_context(**device).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    page.locator(".example").first.wait_for()
    return page


def make_picture(page: Page, prompt: str, **fields: str) -> None:
    """Fills in the form and waits for the pictures."""
    before = page.locator(".print").count()
    page.locator("#prompt").fill(prompt)
    for name, value in fields.items():
        page.locator(f"#{name}").evaluate(
            "(field, value) => { field.value = value; field.dispatchEvent(new Event('input', { bubbles: true })); }",
            value,
        )
    page.locator("#make").click()
    page.wait_for_function("(before) => document.querySelectorAll('.print').length > before", arg=before)


def take_screenshots(browser: Browser, url: str, folder: Path) -> None:
    """Shows the page on a desk in light and dark, with some pictures made, and on a phone."""
    for colours in ("light", "dark"):
        page = open_page(browser, url, color_scheme=colours, **DESK)
        for seed, prompt in enumerate(PROMPTS, 11):
            make_picture(page, prompt, seed=str(seed))
        make_picture(page, GRID, seed="2", num_images="4")
        save(page, folder / f"playground-{colours}.webp")
    page = open_page(browser, url, **PHONE)
    for prompt in PROMPTS:
        make_picture(page, prompt, seed="7")
    page.locator(".print").last.tap()
    save(page, folder / "playground-phone.webp")


def save(page: Page, path: Path) -> None:
    """Writes what is seen."""
    page.mouse.move(0, 0)
    page.locator("#server-text:text-is('Ready')").wait_for()
    page.wait_for_timeout(SETTLES_MS)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.save(path, "WEBP", quality=WEBP_QUALITY, method=6)
    print(f"{path}: {path.stat().st_size // 1024} KiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="write screenshots there")
    options = parser.parse_args()
    facts = card(torch.device("cpu"))
    print_card(facts)
    begun = time.perf_counter()
    with served() as url, chromium() as browser:
        ready = time.perf_counter() - begun
        page = open_page(browser, url, **DESK)
        opened = time.perf_counter() - begun
        page.locator(".example").first.click()
        page.locator(MADE).wait_for()
        seconds = {"server ready": ready, "page open": opened, "first picture": time.perf_counter() - begun}
        for name, taken in seconds.items():
            print(f"{name:14} {taken:6.1f} s")
        if options.screenshots is not None:
            take_screenshots(browser, url, options.screenshots)
    print(json.dumps(facts | {"seconds": {name: round(taken, 2) for name, taken in seconds.items()}}))


if __name__ == "__main__":
    main()

"""Chromium with the page in it, over a scripted backend behind a real socket. Playwright owns its thread's event loop
while it runs, so the tests of this package are no coroutines."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.config.sections import CacheConfig
from serve_app.service import DiffusionService
from tests.serve_app.api.playground.browser.visits import PATIENCE_MS, watched
from tests.serve_app.fakes import FakeBackend
from tests.serve_app.servers import http_server


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    program = shutil.which("chromium")
    assert program, "there is no chromium; .ci/packages installs it"
    # Its sandbox needs rights that root gives up by being root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def service(backend: FakeBackend) -> DiffusionService:
    return DiffusionService(backend, cache=ResultCache(CacheConfig()))


@pytest.fixture
def url(service: DiffusionService) -> Iterator[str]:
    with http_server(create_api(service)) as url:
        yield url


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A visitor who has never been here, and wants no motion."""
    context = browser.new_context(reduced_motion="reduce", viewport={"width": 1280, "height": 860})
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, url: str) -> Iterator[Page]:
    """The page, opened. Fails if it has complained, or has asked anybody but its server."""
    with watched(context.new_page(), url) as page:
        page.goto(url)
        page.locator(".example").first.wait_for()
        yield page

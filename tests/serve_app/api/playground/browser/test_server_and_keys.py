"""The server goes away and comes back; and asks for a key."""

from pathlib import Path

import pytest
import yaml
from playwright.sync_api import BrowserContext, Route, expect

from serve_app.api.application import create_api
from serve_app.config.secret import Secret
from serve_app.gateway.api_keys import Keyring, generate_key, hash_of
from serve_app.gateway.setup import Gateway
from serve_app.service import DiffusionService
from tests.serve_app.api.playground.browser.visits import make, watched
from tests.serve_app.fakes import FakeBackend, slow, success
from tests.serve_app.servers import free_port, http_server


def test_a_server_that_goes_away_is_waited_for_and_nothing_is_lost(
    context: BrowserContext, service: DiffusionService, backend: FakeBackend
) -> None:
    port, page = free_port(), context.new_page()
    with http_server(create_api(service), port) as url, watched(page, url):
        page.goto(url)
        make(page, "a red cup", seed=1)
        backend.script = slow
        page.locator("#seed").fill("2")
        page.locator("#make").click()
        expect(page.get_by_text("Step 1 of 50")).to_be_visible()
    # uvicorn has closed the connection in the middle of the stream.
    expect(page.get_by_role("heading", name="The connection was lost")).to_be_visible()
    expect(page.locator("#banner")).to_contain_text("does not answer")
    expect(page.locator("#server-text")).to_have_text("No answer")
    expect(page.locator(".print")).to_have_count(1)
    backend.script = success
    with http_server(create_api(service), port):
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("#server-text")).to_have_text("Ready")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".print")).to_have_count(2)


@pytest.mark.parametrize("way", ["dropped", "refused for now"])
def test_a_list_that_did_not_come_is_asked_for_again(way: str, context: BrowserContext, url: str) -> None:
    page, asked = context.new_page(), []

    def lose_twice(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) > 2:
            route.continue_()
        elif way == "dropped":
            route.abort()
        else:
            route.fulfill(status=503, headers={"Retry-After": "1"}, body="{}", content_type="application/json")

    page.route("**/ads/v2/diffusion/models", lose_twice)
    with watched(page, url):
        page.goto(url)
        expect(page.locator("#banner")).to_contain_text("keeps trying")
        expect(page.locator(".example").first).to_be_visible(timeout=30_000)
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("#fault")).to_be_hidden()
        expect(page.locator("#model_name option")).not_to_have_count(1)


def test_a_list_that_is_refused_for_good_is_not_asked_for_again(context: BrowserContext, url: str) -> None:
    page, asked = context.new_page(), []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=403, body='{"detail": "not for this key"}', content_type="application/json")

    page.route("**/ads/v2/diffusion/models", refuse)
    with watched(page, url):
        page.goto(url)
        expect(page.locator("#fault")).to_contain_text("not for this key")
        page.evaluate("dispatchEvent(new Event('looknow'))")
        expect(page.locator("#server-text")).to_have_text("Ready")
        assert len(asked) == 1


def test_where_keys_are_on_the_page_opens_and_asks_for_one(
    context: BrowserContext, service: DiffusionService, backend: FakeBackend, tmp_path: Path
) -> None:
    key, file = generate_key(), tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump([{"id": "maker", "hash": hash_of(key), "tenant": "acme"}]))
    gateway = Gateway(keys=Keyring(Secret(file=file)))
    page = context.new_page()
    with http_server(create_api(service, gateway=gateway)) as url, watched(page, url):
        page.goto(url)
        field = page.get_by_label("Key", exact=True)
        expect(field).to_be_focused()
        field.fill("dk_wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_text("This key is not known here.")).to_be_visible()
        field.fill(key)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator(".example").first).to_be_visible()
        make(page, "a cup")
        assert backend.asked[0].tenant == "acme"
        # Statistics need another scope: what is open to all is shown, and why there is no more.
        page.locator("#server-button").click()
        expect(page.locator("#server-note")).to_be_visible()
        expect(page.locator("#server-figures")).to_contain_text("Models in memory")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Code").click()
        assert "$DARKROOM_API_KEY" in page.locator("#code-text").inner_text()
        assert key not in page.content()
        page.keyboard.press("Escape")
        page.reload()
        expect(page.locator(".print")).to_have_count(1)
        expect(page.locator("#key-panel")).to_be_hidden()

"""What begins from near pictures is asked for on the page, and told with each picture."""

from dataclasses import replace

from playwright.sync_api import Page, expect

from deployments.engine.protocol.events import Continuation, ImageDone
from deployments.engine.protocol.request import Request
from tests.serve_app.api.playground.browser.visits import fact, make
from tests.serve_app.fakes import FakeBackend, Step, success


def continued(request: Request) -> list[Step]:
    """All images took over another one's state, if their request allows it."""
    if request.params.cache != "similar":
        return success(request)
    return [
        replace(event, continued=Continuation(8, 0.04)) if isinstance(event, ImageDone) else event
        for event in success(request)
    ]


def test_it_is_asked_for_without_a_seed_and_told_with_the_picture(page: Page, backend: FakeBackend) -> None:
    backend.script = continued
    page.locator("#settings-fold > summary").click()
    page.get_by_label("Begin from near pictures").check()
    make(page, "a cup")
    assert fact(page, "Begun from") == "a near picture, 8 steps on"
    make(page, "a cup", seed=5)
    assert [request.params.cache for request in backend.asked] == ["similar", "default"]
    expect(page.locator(".facts").get_by_text("Begun from")).to_have_count(0)

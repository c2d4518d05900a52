"""The API reference at `/docs`, in a browser: it works without any other host, under its Content-Security-Policy."""

from playwright.sync_api import BrowserContext, expect

from tests.serve_app.api.playground.browser.visits import watched


def test_the_reference_shows_every_endpoint_and_asks_nobody_else(context: BrowserContext, url: str) -> None:
    with watched(context.new_page(), url) as page:
        page.goto(f"{url}/docs")
        expect(page).to_have_title("Darkroom: API reference")
        operation = page.locator("#operations-diffusion-text_to_image_ads_v2_diffusion_text_to_image_post")
        expect(operation).to_be_visible()
        operation.get_by_role("button").first.click()
        expect(operation.get_by_role("button", name="Try it out")).to_be_visible()
        expect(operation).to_contain_text("guidance_scale")
        # What cannot be resolved in the document is shown above it.
        expect(page.locator(".errors-wrapper")).to_have_count(0)


def test_the_reference_can_send_a_request(context: BrowserContext, url: str) -> None:
    with watched(context.new_page(), url) as page:
        page.goto(f"{url}/docs")
        operation = page.locator("#operations-diffusion-styles_ads_v2_diffusion_styles_get")
        operation.get_by_role("button").first.click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table")).to_contain_text("luxury")

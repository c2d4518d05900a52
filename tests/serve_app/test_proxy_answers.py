"""What Ray's proxy says by itself reaches callers in our shape; what the application says, untouched."""

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.proxy_headers import middlewares


def behind(answer: Response) -> httpx.AsyncClient:
    """A client of our layers around something that always says `answer`."""

    async def said(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(scope, receive, send)

    app: ASGIApp = said
    for layer in middlewares():
        app = layer.cls(app, *layer.args, **layer.kwargs)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


@pytest.mark.parametrize(
    ("rays", "status", "code"),
    [
        (404, 404, "not_found"),
        (408, 504, "timeout"),
        (429, 503, "overloaded"),
        (500, 500, "internal_error"),
        (502, 500, "internal_error"),
        (503, 503, "overloaded"),
    ],
)
@pytest.mark.parametrize("form", [PlainTextResponse, Response, lambda text, status: StreamingResponse([text], status)])
async def test_rays_own_errors_are_problems(form: type[Response], rays: int, status: int, code: str) -> None:
    async with behind(form("Traceback: SECRET", rays)) as client:
        answer = await client.get("/", headers={"x-request-id": "mine-1"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert (answer.json()["error"]["code"], answer.json()["request_id"]) == (code, "mine-1")
    assert "SECRET" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["server-timing"].startswith("total;dur=")
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_what_is_ours_passes_as_it_is() -> None:
    ours = JSONResponse(
        {"status": "starting"}, 503, {"X-Content-Type-Options": "nosniff", "Server-Timing": "total;dur=1"}
    )
    async with behind(ours) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()) == (503, {"status": "starting"})
    assert answer.headers.get_list("server-timing") == ["total;dur=1"]


async def test_rays_good_answers_are_marked() -> None:
    async with behind(PlainTextResponse("success")) as client:
        answer = await client.get("/-/healthz")
    assert answer.text == "success"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]

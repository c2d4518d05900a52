"""Errors of Ray's proxy reach callers in our format; the application's answers pass unchanged."""

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.serving.proxy_headers import middlewares


def behind(answer: Response) -> httpx.AsyncClient:
    """A client of our layers around something that always says `answer`."""

    async def said(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(scope, receive, send)

    return around(said)


def around(app: ASGIApp, peer: str = "127.0.0.1") -> httpx.AsyncClient:
    """A client at `peer` of our layers around `app`."""
    for layer in middlewares():
        app = layer.cls(app, *layer.args, **layer.kwargs)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app, client=(peer, 1234)), base_url="http://test")


@pytest.mark.parametrize(
    ("rays", "status", "code"),
    [
        (404, 503, "not_ready"),
        (405, 405, "method_not_allowed"),
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


async def test_where_the_ingress_died_without_a_word_another_will_answer() -> None:
    """Ray's proxy then gives no answer at all, for which uvicorn would say 500 in plain text."""

    async def nothing(_scope: Scope, _receive: Receive, _send: Send) -> None: ...

    async with around(nothing) as client:
        answer = await client.post("/", headers={"x-request-id": "mine-1"})
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert (answer.json()["error"]["code"], answer.json()["retryable"]) == ("ingress_lost", True)
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine-1"
    assert int(answer.headers["retry-after"]) > 0


async def test_what_nobody_expected_in_the_proxy_is_a_problem_as_well() -> None:
    async def broken(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("SECRET")

    async with around(broken) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "SECRET" not in answer.text


async def test_an_answer_that_breaks_off_is_not_begun_again() -> None:
    async def breaks_off(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("SECRET")

    async with around(breaks_off) as client:
        with pytest.raises(RuntimeError):
            await client.get("/")


RAYS = ["/-/routes", "/-/healthz", "/-/", "/-", "/-/crash", "/%2d/routes", "/-/routes?a=1", "/-/healthz/", "/-/metrics"]


@pytest.mark.parametrize("path", RAYS)
async def test_rays_own_pages_are_closed_to_the_outside(path: str) -> None:
    async with around(PlainTextResponse("success"), "10.0.0.7") as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_a_node_asks_itself_how_it_is_and_nothing_else(peer: str) -> None:
    """As KubeRay's probe does, which runs inside the pod."""
    async with around(PlainTextResponse("success"), peer) as client:
        assert (await client.get("/-/healthz")).text == "success"
        for path in set(RAYS) - {"/-/healthz"}:
            assert (await client.get(path)).status_code == 404
        # A proxy on this machine, which speaks for others.
        for header in ("x-forwarded-for", "forwarded", "via", "x-real-ip"):
            assert (await client.get("/-/healthz", headers={header: "1"})).status_code == 404


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

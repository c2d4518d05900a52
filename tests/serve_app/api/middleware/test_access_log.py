"""The access log: one line per request, what it contains and never contains; and the timing and trace headers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.engine.protocol.errors import NumericalFailure, Overloaded
from serve_app.api.application import create_api
from serve_app.api.exchange import exchange_of
from serve_app.api.principal import Principal
from serve_app.service import DiffusionService
from tests.serve_app.fakes import EVENTS, PATH, FakeBackend, failing, http, refusing, slow, until
from tests.serve_app.servers import http_server

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Kept(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    kept, logger = Kept(), logging.getLogger("serve_app.api.middleware.access_log")
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(kept)
    yield kept.records
    logger.removeHandler(kept)


def told(record: logging.LogRecord) -> dict[str, Any]:
    return vars(record)


async def test_a_request_is_one_line_with_its_times(client: httpx.AsyncClient, lines: list[logging.LogRecord]) -> None:
    body = b'{"prompt": "SECRET cup", "model_name": "maker/tiny"}'
    headers = {"Content-Type": "application/json", "x-request-id": "mine-1", "traceparent": PARENT}
    answer = await client.post(PATH, content=body, headers=headers, params={"SECRET": "SECRET"})
    (line,) = map(told, lines)
    assert {name: line[name] for name in ("request_id", "trace_id", "method", "route", "status", "outcome")} == {
        "request_id": "mine-1",
        "trace_id": TRACE,
        "method": "POST",
        "route": PATH,
        "status": 200,
        "outcome": "finished",
    }
    assert (line["model"], line["tenant"], line["code"]) == ("tiny", "", None)
    assert (line["queued_ms"], line["inference_ms"]) == (1, 36)
    assert line["total_ms"] > 0
    assert (line["bytes_in"], line["bytes_out"]) == (len(body), len(answer.content))
    assert "SECRET" not in str(line)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_prompt_is_told_where_that_is_configured(
    backend: FakeBackend, accept: str, lines: list[logging.LogRecord]
) -> None:
    async with http(create_api(DiffusionService(backend), log_prompts=True)) as client:
        await client.post(PATH, json={"prompt": "a cup", "style_preset": "luxury"}, headers={"Accept": accept})
    assert [told(line)["prompt"] for line in lines] == ["a cup"]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (("GET", "/SECRET"), (None, 404, "not_found", "refused")),
        (("PUT", PATH), (PATH, 405, "method_not_allowed", "refused")),
        (("SECRET", "/livez"), ("/livez", 405, "method_not_allowed", "refused")),
        (("GET", "/livez"), ("/livez", 200, None, "finished")),
    ],
    ids=str,
)
async def test_what_is_no_request_of_ours_has_its_line_too(
    client: httpx.AsyncClient, lines: list[logging.LogRecord], sent: tuple[str, str], expected: tuple[Any, ...]
) -> None:
    await client.request(*sent)
    (line,) = map(told, lines)
    assert (line["route"], line["status"], line["code"], line["outcome"]) == expected
    assert "SECRET" not in str(line)


@pytest.mark.parametrize("headers", [{}, EVENTS], ids=["JSON", "stream"])
@pytest.mark.parametrize(
    ("script", "code", "outcome"),
    [
        (refusing(Overloaded("full")), "overloaded", "refused"),
        (failing(NumericalFailure("not finite"), 0), "numerical_failure", "refused"),
        (lambda _: [RuntimeError("SECRET")], "internal_error", "broken"),
    ],
    ids=["refused", "failed", "broken"],
)
async def test_the_line_says_what_a_request_ended_with(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    lines: list[logging.LogRecord],
    headers: dict[str, str],
    script: Any,
    code: str,
    outcome: str,
) -> None:
    backend.script = script
    await client.post(PATH, json={"prompt": "SECRET"}, headers=headers)
    (line,) = map(told, lines)
    assert (line["code"], line["outcome"], line["model"]) == (code, outcome, "tiny")


@pytest.mark.parametrize("headers", [{}, EVENTS], ids=["JSON", "stream"])
async def test_who_leaves_is_cancelled(
    backend: FakeBackend, lines: list[logging.LogRecord], headers: dict[str, str]
) -> None:
    backend.script = slow
    with http_server(create_api(DiffusionService(backend))) as url:
        async with httpx.AsyncClient(timeout=0.3) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(url + PATH, json={"prompt": "a cup"}, headers=headers)
        await until(lambda: len(lines) == 1)
    assert (told(lines[0])["outcome"], told(lines[0])["code"]) == ("cancelled", None)


async def test_who_is_cut_off_is_cancelled(backend: FakeBackend, lines: list[logging.LogRecord]) -> None:
    """As Ray does it: the task that answers is cancelled."""
    backend.script = slow
    async with http(create_api(DiffusionService(backend))) as client:
        request = asyncio.ensure_future(client.post(PATH, json={"prompt": "a cup"}))
        await until(lambda: backend.running == 1)
        request.cancel()
        await asyncio.wait((request,))
    assert [told(line)["outcome"] for line in lines] == ["cancelled"]


async def test_the_line_knows_the_tenant(backend: FakeBackend, lines: list[logging.LogRecord]) -> None:
    app = create_api(DiffusionService(backend))

    class Known:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            exchange_of(scope).principal = Principal("acme")
            await self.app(scope, receive, send)

    app.add_middleware(Known)
    async with http(app) as client:
        await client.get("/livez")
    assert told(lines[0])["tenant"] == "acme"


async def answers(client: httpx.AsyncClient) -> AsyncIterator[httpx.Response]:
    """Of every kind."""
    for method, path in (("GET", "/livez"), ("GET", "/nowhere"), ("GET", PATH), ("GET", "/metrics"), ("GET", "/docs")):
        yield await client.request(method, path, headers={"traceparent": PARENT})
    for asked in ({"prompt": "a cup"}, {"prompt": ""}, {"prompt": "a cup", "model_name": "none"}):
        for accept in ("application/json", "image/png", "text/event-stream", "text/html"):
            yield await client.post(PATH, json=asked, headers={"Accept": accept, "traceparent": PARENT})


async def test_every_answer_says_how_long_it_took_and_which_trace_it_is_of(client: httpx.AsyncClient) -> None:
    async for answer in answers(client):
        assert "total;dur=" in answer.headers["server-timing"]
        assert answer.headers["x-trace-id"] == TRACE
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["SECRET"],
        [PARENT, PARENT],
        [PARENT.upper()],
        [f"00-{'0' * 32}-00f067aa0ba902b7-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [PARENT + "-more"],
        [PARENT.replace("00-", "ff-", 1)],
        ["00-" * 300 + PARENT],
    ],
    ids=str,
)
async def test_what_is_no_trace_is_not_joined(client: httpx.AsyncClient, given: list[str]) -> None:
    answer = await client.get("/livez", headers=[("traceparent", value) for value in given])
    assert "x-trace-id" not in answer.headers


async def test_the_trace_that_is_recorded_here_is_the_one_that_is_told(client: httpx.AsyncClient) -> None:
    """As under Ray Serve with tracing on: its span of the same request is current."""
    recorded = trace.SpanContext(0xABC, 1, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(recorded)):
        answer = await client.get("/livez", headers={"traceparent": PARENT})
    assert answer.headers["x-trace-id"] == f"{0xABC:032x}"

"""Limits on a request's head, enforced by uvicorn on a real socket, as Ray's proxy runs it."""

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import psutil
import pytest
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.serving.http_protocol import BoundedProtocol
from serve_app.serving.node_environment import HEAD_TIMEOUT_VARIABLE, read_head_timeout_s
from serve_app.serving.proxy_headers import middlewares
from serve_app.serving.request_head import MAX_HEAD_BYTES, MAX_HEADERS, MAX_TARGET_BYTES
from tests.serve_app.servers import free_port

TIMEOUT_S: Final = 0.6
HEAD: Final = b"POST /here HTTP/1.1\r\nHost: localhost\r\n"
ENDS: Final = b"Connection: close\r\n\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


@dataclass
class Server:
    port: int
    seen: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Says which headers and body reached it; `/late` after a while, `/unread` without reading."""
        request = Request(scope, receive)
        with suppress(ClientDisconnect):
            body = b"" if request.url.path == "/unread" else await request.body()
            headers = [[name, value] for name, value in request.headers.items()]
            self.seen.append({"path": request.url.path, "headers": dict(headers), "body": body.decode("latin-1")})
            await JSONResponse(self.seen[-1], headers={"X-Content-Type-Options": "nosniff"})(scope, receive, send)

    def send(self, *pieces: bytes | float) -> bytes:
        """Everything that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as wire:
            with suppress(OSError):
                for piece in pieces:
                    if isinstance(piece, bytes):
                        wire.sendall(piece)
                    else:
                        time.sleep(piece)
            heard = b""
            with suppress(ConnectionError):
                while more := wire.recv(65_536):
                    heard += more
        return heard


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HEAD_TIMEOUT_VARIABLE, str(TIMEOUT_S))
        port = free_port()
        running = Server(port)
        app: ASGIApp = running
        for layer in middlewares():
            app = layer.cls(app, *layer.args, **layer.kwargs)
        uvicorns = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=uvicorns.run)
        thread.start()
        try:
            while not uvicorns.started:
                time.sleep(0.01)
            assert uvicorns.config.http_protocol_class is BoundedProtocol
            yield running
        finally:
            uvicorns.should_exit = True
            thread.join()


def answers_in(heard: bytes) -> list[tuple[int, dict[str, Any]]]:
    """Each answer's status and JSON body. The last may end with the connection."""

    class Wire:
        def makefile(self, _mode: str) -> Any:
            return stream

    answers, stream = [], _Unclosed(heard)
    while stream.peek():
        answer = http.client.HTTPResponse(Wire())  # type: ignore[arg-type]
        answer.begin()
        answers.append((answer.status, json.loads(answer.read() or b"{}")))
    return answers


class _Unclosed:
    """Bytes to read, for one answer after another: each would close it."""

    def __init__(self, heard: bytes) -> None:
        self._bytes = io.BytesIO(heard)
        self.read, self.readline, self.readinto = self._bytes.read, self._bytes.readline, self._bytes.readinto

    def peek(self) -> bytes:
        return self._bytes.getbuffer()[self._bytes.tell() :].tobytes()

    def flush(self) -> None: ...

    def close(self) -> None: ...


def refused(heard: bytes) -> tuple[int, str]:
    """The status and code of the one answer, which is a problem with the headers that all have; the connection ends."""
    ((status, body),) = answers_in(heard)
    assert body["request_id"].encode() in heard.partition(b"\r\n\r\n")[0]
    for header in (b"content-type: application/problem+json", b"x-content-type-options: nosniff", b"connection: close"):
        assert heard.partition(b"\r\n\r\n")[0].lower().count(header) == 1
    return status, body["error"]["code"]


def served(heard: bytes) -> dict[str, Any]:
    ((status, body),) = answers_in(heard)
    assert status == 200, body
    return body


def many(count: int, size: int = 1) -> bytes:
    return b"".join(b"X-%d: %s\r\n" % (i, b"a" * size) for i in range(count))


TOO_LARGE: Final = {
    "a header more than there may be": HEAD + many(MAX_HEADERS - 1) + ENDS,
    "200,000 headers": HEAD + many(200_000) + ENDS,
    "the same name 5,000 times": HEAD + b"Cookie: a=b\r\n" * 5_000 + ENDS,
    "100 KB in one value": HEAD + many(1, 100_000) + ENDS,
    "100 KB in ten values": HEAD + many(10, 10_000) + ENDS,
    "100 KB of a name": HEAD + b"X" * 100_000 + b": 1\r\n" + ENDS,
    "60 MB that never end": HEAD + b"X-A: " + b"a" * 60_000_000,
    "trailers by the thousand": HEAD + CHUNKED + b"\r\n0\r\n" + many(1000) + b"\r\n",
    "a trailer of 100 KB": HEAD + CHUNKED + b"\r\n0\r\nX: " + b"a" * 100_000,
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_head_over_the_bounds_is_431(server: Server, name: str) -> None:
    before = psutil.Process().memory_info().rss
    assert refused(server.send(TOO_LARGE[name])) == (431, "headers_too_large")
    assert psutil.Process().memory_info().rss - before < 8 * 2**20


def test_a_head_at_the_bounds_is_served(server: Server) -> None:
    most = served(server.send(HEAD + many(MAX_HEADERS - 3) + b"X-A: 1\r\n" + ENDS))
    assert len(most["headers"]) == MAX_HEADERS + 1  # and a request id
    room = MAX_HEAD_BYTES - 200
    assert len(served(server.send(HEAD + b"X-A: " + b"a" * room + b"\r\n" + ENDS))["headers"]["x-a"]) == room


def test_the_bounds_are_each_requests_own(server: Server) -> None:
    one = HEAD + many(60) + b"\r\n"
    assert [status for status, _ in answers_in(server.send(one * 3 + HEAD + ENDS))] == [200] * 4


def test_a_long_target_is_414(server: Server) -> None:
    for target in (b"/" + b"a" * MAX_TARGET_BYTES, b"/?" + b"a=1&" * 20_000):
        assert refused(server.send(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n" + ENDS))[0] == 414


NEVER_ENDS: Final = {
    "half a request line": (b"GET /liv",),
    "half a header": (HEAD + b"X-A: a",),
    "headers without an end": (HEAD,),
    "a letter at a time": tuple(piece for letter in HEAD[:30] for piece in (bytes([letter]), 0.05)),
    "a header at a time": (HEAD, *(piece for i in range(20) for piece in (b"X-%d: 1\r\n" % i, 0.05))),
    "the second request's half": (HEAD + b"\r\n" + HEAD + b"X-A",),
}


@pytest.mark.parametrize("name", NEVER_ENDS)
def test_a_head_that_does_not_come_in_time_is_408_and_its_connection_closed(server: Server, name: str) -> None:
    begun = time.monotonic()
    *before, (status, body) = answers_in(server.send(*NEVER_ENDS[name]))
    assert (status, body["error"]["code"]) == (408, "request_timeout")
    assert [each for each, _ in before] == [200] * len(before)
    assert TIMEOUT_S * 0.8 < time.monotonic() - begun < TIMEOUT_S + 1.5


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_connection_on_which_no_request_begins_is_closed(server: Server, sent: bytes) -> None:
    begun = time.monotonic()
    assert server.send(sent) == b""
    assert time.monotonic() - begun < TIMEOUT_S + 1.5


def test_a_body_that_nobody_reads_does_not_keep_its_connection(server: Server) -> None:
    begun = time.monotonic()
    unread = HEAD.replace(b"/here", b"/unread") + b"Content-Length: 1000\r\n\r\n"
    served(server.send(unread, *(piece for _ in range(30) for piece in (b"a", 0.05))))
    assert time.monotonic() - begun < TIMEOUT_S + 2.5


def test_a_slow_body_has_its_own_time(server: Server) -> None:
    """Whoever reads it says how long that may be (`api/body.py`)."""
    assert served(server.send(HEAD + b"Content-Length: 3\r\n" + ENDS, b"a", 2 * TIMEOUT_S, b"bc"))["body"] == "abc"


REFUSED: Final = {
    "gzip, chunked": (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "invalid_transfer_encoding"),
    "chunked, chunked": (HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "malformed_request"),
    "chunked twice": (HEAD + CHUNKED * 2 + b"\r\n0\r\n\r\n", "malformed_request"),
    "gzip in a line of its own": (
        HEAD + b"Transfer-Encoding: gzip\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        "invalid_transfer_encoding",
    ),
    "identity": (HEAD + b"Transfer-Encoding: identity\r\n\r\n", "invalid_transfer_encoding"),
    "chunks in HTTP/1.0": (
        b"POST / HTTP/1.0\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        "invalid_transfer_encoding",
    ),
    "two hosts": (HEAD + b"Host: other\r\n" + ENDS, "invalid_host"),
    "the same host twice": (HEAD + b"Host: localhost\r\n" + ENDS, "invalid_host"),
    "two hosts in HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n" + ENDS, "invalid_host"),
    "no host": (b"GET / HTTP/1.1\r\n" + ENDS, "invalid_host"),
    "an empty host": (b"GET / HTTP/1.1\r\nHost:\r\n" + ENDS, "invalid_host"),
    "a list of hosts": (b"GET / HTTP/1.1\r\nHost: localhost, other\r\n" + ENDS, "invalid_host"),
    "a host with a user": (b"GET / HTTP/1.1\r\nHost: localhost@other\r\n" + ENDS, "invalid_host"),
    "a host with a path": (b"GET / HTTP/1.1\r\nHost: localhost/other\r\n" + ENDS, "invalid_host"),
    "a host with a port that is none": (b"GET / HTTP/1.1\r\nHost: localhost:80x\r\n" + ENDS, "invalid_host"),
    "another host in the target": (b"GET http://other/ HTTP/1.1\r\nHost: localhost\r\n" + ENDS, "invalid_target"),
    "a user in the target": (b"GET http://localhost@other/ HTTP/1.1\r\nHost: localhost\r\n" + ENDS, "invalid_target"),
    "a target of no path": (b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n" + ENDS, "invalid_target"),
    "a fragment": (b"GET /a#b HTTP/1.1\r\nHost: localhost\r\n" + ENDS, "invalid_target"),
    "no path": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n" + ENDS, "invalid_target"),
    "two lengths": (HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n" + ENDS, "malformed_request"),
    "chunks and another protocol": (
        HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        "invalid_upgrade",
    ),
    "a folded header": (HEAD + b"X-A: a\r\n b\r\n" + ENDS, "malformed_request"),
    "a control character": (HEAD + b"X-A: a\x01\r\n" + ENDS, "malformed_request"),
    "chunk extensions without end": (HEAD + CHUNKED + b"\r\n1;" + b"a" * 200_000, "headers_too_large"),
    "chunk extensions in many chunks": (
        HEAD + CHUNKED + b"\r\n" + (b"1;" + b"a" * 1000 + b"\r\nx\r\n") * 500,
        "malformed_request",
    ),
    "chunks that are none": (HEAD + CHUNKED + b"\r\nzz\r\n", "malformed_request"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused_before_anybody_is_asked(server: Server, name: str) -> None:
    sent, code = REFUSED[name]
    server.seen.clear()
    status, said = refused(server.send(sent))
    assert (status, said) == (431 if code == "headers_too_large" else 400, code)
    assert server.seen == []


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /here HTTP/1.0\r\n\r\n",
        b"GET http://localhost/here HTTP/1.1\r\nHost: LOCALHOST\r\n" + ENDS,
        b"GET /here HTTP/1.1\r\nHost: [::1]:8000\r\n" + ENDS,
        b"GET /here HTTP/1.1\r\nHost: my_service.example.com.:80\r\n" + ENDS,
        HEAD + b"Transfer-Encoding:  Chunked \r\n" + ENDS + b"0\r\n\r\n",
        HEAD + b"Expect: 100-Continue\r\n" + ENDS,
    ],
)
def test_what_is_clear_is_served(server: Server, sent: bytes) -> None:
    heard = server.send(sent)
    assert served(heard[heard.index(b"HTTP/1.1 200") :])["path"] == "/here"


def test_what_breaks_after_its_answer_gets_no_second_one(server: Server) -> None:
    """It would be taken for the answer to the next request on the connection."""
    unread = HEAD.replace(b"/here", b"/unread") + CHUNKED
    assert served(server.send(unread + b"\r\n", 0.2, b"zz\r\n"))["path"] == "/unread"


def test_other_expectations_and_proxying_are_refused_by_name(server: Server) -> None:
    assert refused(server.send(HEAD + b"Expect: a-miracle\r\n" + ENDS)) == (417, "expectation_failed")
    connect = b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost:22\r\n\r\n"
    assert refused(server.send(connect)) == (405, "method_not_allowed")


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
def test_an_offer_of_another_protocol_costs_nobody_the_body(server: Server, protocol: bytes) -> None:
    """Java's client makes one with every request; what follows the headers must never be taken for a request."""
    offer = HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\n"
    body = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    server.seen.clear()
    for pieces in ((offer + b"Content-Length: %d\r\n\r\n" % len(body), 0.1, body), (offer + b"\r\n",)):
        served(server.send(*pieces, b"GET /after HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert [(seen["path"], seen["body"]) for seen in server.seen] == [("/here", body.decode()), ("/here", "")]


def test_trailers_reach_nobody_and_no_later_request(server: Server) -> None:
    first = HEAD + CHUNKED + b"\r\n1\r\nx\r\n0\r\nAuthorization: Bearer mine\r\nHost: other\r\n\r\n"
    server.seen.clear()
    assert [status for status, _ in answers_in(server.send(first + HEAD + ENDS))] == [200, 200]
    assert [seen["headers"].get("authorization") for seen in server.seen] == [None, None]
    assert [seen["headers"]["host"] for seen in server.seen] == ["localhost", "localhost"]


def test_a_refusal_comes_in_its_turn_and_takes_the_callers_request_id(server: Server) -> None:
    sent = (HEAD + b"\r\n") * 2 + HEAD + b"X-Request-Id: mine-1\r\nHost: again\r\n" + ENDS + HEAD + ENDS
    *before, (status, body) = answers_in(server.send(sent))
    assert [each for each, _ in before] == [200, 200]
    assert (status, body["request_id"]) == (400, "mine-1")


def test_what_was_refused_reaches_an_ordinary_client(server: Server) -> None:
    """It is still sending when the answer is there."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as client:
        client.putrequest("POST", "/here")
        for i in range(2 * MAX_HEADERS):
            client.putheader(f"X-{i}", "1")
        client.endheaders()
        answer = client.getresponse()
        assert answer.status == 431
        assert json.loads(answer.read())["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize("said", ["", "soon", "0", "-1", "inf", "nan"])
def test_a_time_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(HEAD_TIMEOUT_VARIABLE, said)
    with pytest.raises(ValueError, match=HEAD_TIMEOUT_VARIABLE):
        read_head_timeout_s()
    with pytest.raises(ValueError, match=HEAD_TIMEOUT_VARIABLE):
        middlewares()

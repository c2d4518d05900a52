"""A disconnect stops its request at once: over plain ASGI, and over a real socket."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Message

from serve_app.api.application import create_api
from serve_app.api.parsing.body import MAX_BODY_BYTES
from serve_app.api.responses import event_stream
from serve_app.service import DiffusionService
from tests.serve_app.fakes import PATH, FakeBackend, slow, success, until

BODY = json.dumps({"prompt": "a red cup", "num_images": 2}).encode()
ACCEPTS = ["application/json", "text/event-stream", "image/png, application/json"]


def scope_of(accept: str, spec_version: str = "2.3") -> dict[str, Any]:
    headers = {"content-type": "application/json", "accept": accept}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": "POST",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "scheme": "http",
        "root_path": "",
        "server": ("test", 80),
        "client": ("test", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }


class Caller:
    """A client at the ASGI seam, which leaves when it is told to."""

    def __init__(self, body: Any = None) -> None:
        self.left = asyncio.Event()
        self.sent: list[Message] = []
        content = BODY if body is None else json.dumps(body).encode()
        self._incoming = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def receive(self) -> Message:
        for message in self._incoming:
            return message
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("spec_version", ["2.0", "2.3", "2.4"])
@pytest.mark.parametrize("accept", ACCEPTS)
async def test_leaving_ends_the_request_whatever_was_accepted(
    service: DiffusionService, backend: FakeBackend, accept: str, spec_version: str
) -> None:
    backend.script = slow
    caller = Caller()
    call = asyncio.create_task(create_api(service)(scope_of(accept, spec_version), caller.receive, caller.send))
    await until(lambda: backend.running == 1)
    caller.left.set()
    await asyncio.wait_for(call, 2)
    assert (backend.running, len(backend.cancelled)) == (0, 1)
    assert (await service.get_generation_stats())["cancelled"] == 1


@pytest.mark.parametrize("accept", ACCEPTS)
async def test_leaving_before_the_engine_has_said_anything_ends_it_too(
    service: DiffusionService, backend: FakeBackend, accept: str
) -> None:
    backend.script = lambda request: slow(request)[2:]
    caller = Caller()
    call = asyncio.create_task(create_api(service)(scope_of(accept), caller.receive, caller.send))
    await until(lambda: backend.running == 1)
    caller.left.set()
    await asyncio.wait_for(call, 2)
    assert (backend.running, len(backend.cancelled)) == (0, 1)


async def test_a_client_that_stops_reading_is_taken_for_gone(
    service: DiffusionService, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "WRITE_SECONDS", 0.05)
    backend.script = slow
    caller = Caller()

    async def stuck(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    await asyncio.wait_for(create_api(service)(scope_of("text/event-stream"), caller.receive, stuck), 2)
    assert (backend.running, len(backend.cancelled)) == (0, 1)


@pytest.fixture
def server(service: DiffusionService) -> Iterator[int]:
    """A real server in a thread; the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(create_api(service), log_level="critical", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        eventually(lambda: server.started)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(10)


def eventually(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def post(port: int, accept: str, body: bytes = BODY, length: int | None = None) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nAccept: {accept}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("accept", ACCEPTS)
def test_a_socket_that_closes_ends_the_request(server: int, backend: FakeBackend, accept: str) -> None:
    backend.script = slow
    connection = post(server, accept)
    eventually(lambda: backend.running == 1)
    connection.close()
    eventually(lambda: backend.running == 0)
    assert len(backend.cancelled) == 1


def test_fifty_sockets_that_close_at_once_leave_nothing_running(server: int, backend: FakeBackend) -> None:
    backend.script = slow
    connections = [post(server, ACCEPTS[i % 3]) for i in range(50)]
    eventually(lambda: backend.running == 50)
    for connection in connections:
        connection.close()
    eventually(lambda: backend.running == 0)
    assert len(backend.cancelled) == 50


def test_a_client_that_stays_is_served_over_a_socket(server: int, backend: FakeBackend) -> None:
    backend.script = success
    with post(server, "application/json") as connection:
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK")
    assert not backend.cancelled


def test_a_body_that_is_announced_too_large_is_refused_unread(server: int) -> None:
    with post(server, "*/*", body=b"", length=MAX_BODY_BYTES * 100) as connection:
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer


def test_an_endless_chunked_body_is_cut_off(server: int, backend: FakeBackend) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server), timeout=5) as connection:
        connection.sendall(head.encode())
        sent = send_chunks(connection, MAX_BODY_BYTES * 20)
        assert connection_answer(connection).startswith((b"HTTP/1.1 413 ", b""))
    assert sent < MAX_BODY_BYTES * 20
    assert not backend.asked


def send_chunks(connection: socket.socket, at_most: int) -> int:
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    sent = 0
    try:
        while sent < at_most:
            connection.sendall(chunk)
            sent += 65_536
    except OSError:
        pass
    return sent


def connection_answer(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65_536)
    except OSError:
        return b""

"""How long a call may take, and what is waited for meanwhile: one rule for both clients, on the tests' own clock."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest

from deployments.engine.protocol.events import Accepted
from serve_app.api.application import create_api
from serve_app.client import AsyncDarkroomClient, DarkroomClient, DarkroomError
from serve_app.service import DiffusionService
from tests.serve_app.fakes import FOREVER, FakeBackend, success, until

CUP: Final = "a red cup"
CONFLICT: Final = {"error": {"code": "idempotency_conflict", "message": "being worked on"}, "retryable": True}
MADE: Final = {"id": "a", "images": []}


@dataclass
class Clock:
    """Time that passes only when somebody waits, or when a test says so."""

    now: float = 1000.0
    naps: list[float] = field(default_factory=list)

    def nap(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds

    async def nap_async(self, seconds: float) -> None:
        self.nap(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("serve_app.client.retries.monotonic", lambda: clock.now)
    monkeypatch.setattr("serve_app.client.client.sleep", clock.nap)
    monkeypatch.setattr("serve_app.client.async_client.sleep", clock.nap_async)
    return clock


# What comes of the next try: an answer, or an error to raise.
Outcome = httpx.Response | Exception
Ask = Callable[..., Any]


def generate(server: Callable[[httpx.Request], Outcome], asynchronous: bool, **options: Any) -> Any:
    """Asks `server` for images with one of the clients."""

    def handle(request: httpx.Request) -> httpx.Response:
        outcome = server(request)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def ask() -> Any:
        async with AsyncDarkroomClient("http://test", transport=httpx.MockTransport(handle), **options) as client:
            return await client.generate(prompt=CUP)

    if asynchronous:
        return asyncio.run(ask())
    with DarkroomClient("http://test", transport=httpx.MockTransport(handle), **options) as client:
        return client.generate(prompt=CUP)


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "asyncio"])


@both
def test_an_image_that_is_being_made_is_waited_for_however_often_that_is_asked(
    asynchronous: bool, clock: Clock
) -> None:
    conflicts = [httpx.Response(409, json=CONFLICT, headers={"Retry-After": "2"}) for _ in range(20)]
    outcomes: list[Outcome] = [httpx.ReadError("lost"), *conflicts, httpx.Response(200, json=MADE)]
    keys = set()

    def server(request: httpx.Request) -> Outcome:
        keys.add(request.headers["Idempotency-Key"])
        return outcomes.pop(0)

    assert generate(server, asynchronous) == []
    assert clock.naps[1:] == [2.0] * 20
    assert len(keys) == 1


@both
def test_an_image_that_is_being_made_is_waited_for_no_longer_than_the_time_out(
    asynchronous: bool, clock: Clock
) -> None:
    with pytest.raises(DarkroomError) as caught:
        generate(lambda _: httpx.Response(409, json=CONFLICT), asynchronous, timeout=25, retries=0)
    assert (caught.value.code, caught.value.retryable) == ("timeout", True)
    assert 20 < sum(clock.naps) < 25


async def test_a_lost_connection_ends_in_the_image_that_the_first_try_has_made(
    service: DiffusionService, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the real API, whose 409 is meant."""
    app = httpx.ASGITransport(create_api(service))
    first: list[asyncio.Future[httpx.Response]] = []
    conflicts = 0

    async def serve(request: httpx.Request) -> httpx.Response:
        if not first:
            backend.script = lambda request: [Accepted(request.id, 0), 0.05, *success(request)[1:]]
            first.append(asyncio.ensure_future(app.handle_async_request(request)))
            await until(lambda: backend.running == 1)
            raise httpx.ReadError("lost")
        return await app.handle_async_request(request)

    async def nap(seconds: float) -> None:
        nonlocal conflicts
        conflicts += seconds == 2.0
        if conflicts == 6:
            await first[0]

    monkeypatch.setattr("serve_app.client.async_client.sleep", nap)
    async with AsyncDarkroomClient("http://test", transport=httpx.MockTransport(serve)) as client:
        (image,) = await client.generate(prompt=CUP)
    assert image.picture().size == (64, 64)
    assert (len(backend.asked), backend.cancelled) == (1, [])


@both
def test_all_tries_have_one_deadline(asynchronous: bool, clock: Clock) -> None:
    limits = []

    def server(request: httpx.Request) -> Outcome:
        limits.append(request.extensions["timeout"]["read"])
        clock.now += min(9, limits[-1] - 1)
        return httpx.Response(503, headers={"Retry-After": "1"})

    with pytest.raises(DarkroomError) as caught:
        generate(server, asynchronous, timeout=32, retries=10)
    assert caught.value.status == 503
    assert limits == [32, 22, 12, 2]


@both
def test_what_took_too_long_is_not_begun_again(asynchronous: bool, clock: Clock) -> None:
    asked = []

    def server(request: httpx.Request) -> Outcome:
        asked.append(request)
        return httpx.ReadTimeout("nothing came")

    with pytest.raises(DarkroomError) as caught:
        generate(server, asynchronous, retries=5)
    assert (caught.value.code, len(asked), clock.naps) == ("timeout", 1, [])


@both
def test_a_server_that_could_not_be_connected_to_in_time_is_tried_again(asynchronous: bool, clock: Clock) -> None:
    outcomes: list[Outcome] = [httpx.ConnectTimeout("busy"), httpx.Response(200, json=MADE)]
    assert generate(lambda _: outcomes.pop(0), asynchronous) == []


HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"


@contextlib.contextmanager
def never_done(before: bytes, drop: bytes) -> Iterator[str]:
    """A server whose answers begin with `before`, and then have `drop` every now and then, and no end."""
    gone = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(before)
            while not gone.wait(0.01):
                connection.sendall(drop)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            gone.set()
            thread.join()


@both
@pytest.mark.parametrize(
    ("before", "drop"),
    [(b"", b""), (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"), (HEAD, b" ")],
    ids=["hanging", "dripping headers", "dripping body"],
)
def test_no_call_takes_a_second_more_than_its_time_out(asynchronous: bool, before: bytes, drop: bytes) -> None:
    async def ask(url: str) -> None:
        async with AsyncDarkroomClient(url, 0.3) as client:
            await client.generate(prompt=CUP)

    def wait(url: str) -> None:
        with DarkroomClient(url, 0.3) as client:
            client.generate(prompt=CUP)

    began = time.monotonic()
    with never_done(before, drop) as url, pytest.raises(DarkroomError) as caught:
        asyncio.run(ask(url)) if asynchronous else wait(url)
    assert caught.value.code == "timeout"
    assert time.monotonic() - began < 1.3


async def test_the_server_stops_when_the_time_is_over_and_begins_only_once(
    service: DiffusionService, backend: FakeBackend
) -> None:
    backend.script = lambda request: [Accepted(request.id, 0), FOREVER]
    transport = httpx.ASGITransport(create_api(service))
    async with AsyncDarkroomClient("http://test", 0.3, transport=transport) as client:
        with pytest.raises(DarkroomError) as caught:
            await client.generate(prompt=CUP)
    assert caught.value.code == "timeout"
    await until(lambda: backend.running == 0)
    assert len(backend.asked) == len(backend.cancelled) == 1

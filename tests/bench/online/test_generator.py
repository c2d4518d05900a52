"""The load over HTTP, and how its outcomes are counted. The server is a socket that answers as it is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from bench.online.generator import Planned, Sample, send_all, tally
from bench.online.messages import Message

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nPNG"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"

Answer = Callable[[], Awaitable[bytes]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Yields the URL of a server that answers one request of each connection."""
    open_ones: set[asyncio.StreamWriter] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(await answer())
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        host, port = listening.sockets[0].getsockname()
        yield f"http://{host}:{port}"
        for writer in open_ones:
            writer.close()


def planned(at: float, deadline_s: float) -> Planned:
    return Planned(at, deadline_s, Message("/generate", {"json": {}}))


def sample(seconds: float, *, outcome: str = "answered", at: float = 0.0, deadline_s: float = 2.0) -> Sample:
    return Sample(at, deadline_s, outcome, seconds, 0.0)  # type: ignore[arg-type]


async def test_requests_do_not_wait_for_earlier_ones() -> None:
    """Ten in 0.2 s, though each takes 0.5 s: one after another would take five seconds."""

    async def slow() -> bytes:
        await asyncio.sleep(0.5)
        return OK

    async with server(slow) as url:
        samples = await asyncio.wait_for(send_all(url, [planned(index * 0.02, 2.0) for index in range(10)]), 3.0)
    assert all(one.in_time for one in samples)
    assert all(0.4 < one.seconds < 1.5 for one in samples)


@pytest.mark.parametrize(("answer", "outcome"), [(OK, "answered"), (BUSY, "refused"), (BROKEN, "failed")])
async def test_refusals_and_failures_are_told_apart(answer: bytes, outcome: str) -> None:
    async def at_once() -> bytes:
        return answer

    async with server(at_once) as url:
        (found,) = await send_all(url, [planned(0.0, 2.0)])
    assert found.outcome == outcome


async def test_a_client_hangs_up_after_twice_its_deadline() -> None:
    async def never() -> bytes:
        await asyncio.sleep(1)
        return OK

    async with server(never) as url:
        (found,) = await send_all(url, [planned(0.0, 0.1)])
    assert found.outcome == "left"
    assert 0.15 < found.seconds < 1.0


async def test_a_server_that_is_gone_is_a_failure() -> None:
    async with server(lambda: asyncio.sleep(0, OK)) as url:
        gone = url
    (found,) = await send_all(gone, [planned(0.0, 2.0)])
    assert found.outcome == "failed"


def test_goodput_counts_only_what_came_in_time() -> None:
    figures = tally([sample(1.0), sample(2.0), sample(2.1), sample(0.1, outcome="refused")], 10.0)
    assert figures["goodput_per_s"] == 0.2
    assert figures["in_time"] == 0.5
    assert (figures["answered"], figures["refused"]) == (3, 1)


def test_throughput_counts_what_came_while_requests_arrived() -> None:
    assert tally([sample(1.0, at=8.0), sample(1.5, at=9.0)], 10.0)["throughput_per_s"] == 0.1


def test_a_request_without_a_picture_is_infinitely_late() -> None:
    """Else a server that refuses all but the easy requests would look fast."""
    figures = tally([sample(1.0)] * 90 + [sample(0.1, outcome="refused")] * 10, 10.0)
    assert figures["p50_s"] == 1.0
    assert figures["p95_s"] is None

"""Requests are spread over the nodes that are there, and none is sent twice."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from bench.cluster.spread import Spread

# All of 127/8 is this machine: as many nodes as one likes on one port.
HERE, THERE, NOWHERE = "127.0.0.11", "127.0.0.12", "127.0.0.13"


class Node:
    """Answers every request with its own address."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline() not in (b"", b"\r\n"):
            pass
        self.asked += 1
        body = self.host.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    here, there = Node(HERE), Node(THERE)
    first = await asyncio.start_server(here.serve, HERE, 0)
    port: int = first.sockets[0].getsockname()[1]
    second = await asyncio.start_server(there.serve, THERE, port)
    yield port
    first.close()
    second.close()


async def ask(port: int, nodes: list[str], times: int) -> list[str]:
    async with httpx.AsyncClient(base_url=f"http://192.0.2.1:{port}", transport=Spread(lambda: nodes)) as client:
        return [(await client.get("/")).text for _ in range(times)]


async def test_each_has_its_turn(port: int) -> None:
    assert sorted(await ask(port, [HERE, THERE], 6)) == [HERE] * 3 + [THERE] * 3


async def test_one_that_takes_no_connection_is_passed_by(port: int) -> None:
    assert sorted(set(await ask(port, [HERE, NOWHERE, THERE], 6))) == [HERE, THERE]


async def test_where_there_is_none_the_caller_hears_of_it(port: int) -> None:
    with pytest.raises(httpx.ConnectError):
        await ask(port, [NOWHERE], 1)

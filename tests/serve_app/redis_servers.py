"""A wire to a real Redis that can be made to fail."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

from bench.redis_server import RedisServer
from serve_app.config.secret import Secret
from serve_app.config.sections import RedisConfig
from tests.serve_app.servers import free_port

# It need not be secret here, only long enough and the same for everybody.
KEY = Secret(file=Path(__file__))


def redis_at(url: str, **more: Any) -> RedisConfig:
    """The settings of a process that uses the Redis there."""
    return RedisConfig(url=url, key=KEY, **more)


Mode = Literal["pass", "refuse", "silent", "slow", "cut"]


class Wire:
    """Listens on `port` and passes everything on to `target`, as long as its `mode` is `pass`.

    `refuse`: nobody listens, and who was connected is thrown out. `silent`: what is sent is swallowed. `slow`: each
    answer takes `delay_s` longer. `cut`: half an answer, and the connection is gone.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.mode: Mode = "pass"
        self.delay_s = 0.0
        self.opened = 0
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def turn(self, mode: Mode, delay_s: float = 0.0) -> None:
        """From now on it behaves like that."""
        self.mode, self.delay_s = mode, delay_s
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
            for writer in self._writers:
                writer.transport.abort()
        elif mode != "refuse" and self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def kill_silently(self) -> None:
        """The connections of now are dead for ever, and nobody is told; new ones are not."""
        self._dead |= self._writers

    async def close(self) -> None:
        """Nobody listens any more, and nothing is left open."""
        await self.turn("refuse")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(back)
            await asyncio.gather(self._pump(reader, back, writer), self._pump(there, writer, writer, answers=True))
            self._writers.discard(back)
        writer.transport.abort()
        self._writers.discard(writer)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        *,
        answers: bool = False,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(2**16):
                if self.mode == "silent" or client in self._dead:
                    continue
                if answers and self.mode == "slow":
                    await asyncio.sleep(self.delay_s)
                if answers and self.mode == "cut":
                    client.write(data[: len(data) // 2])
                    await client.drain()
                    break
                sink.write(data)
                await sink.drain()
        # The other direction hears of it, too.
        sink.transport.abort()
        client.transport.abort()


@contextlib.asynccontextmanager
async def wire_to(server: RedisServer) -> AsyncIterator[Wire]:
    """A wire that passes everything on, for now."""
    wire = Wire(server.port)
    await wire.turn("pass")
    try:
        yield wire
    finally:
        await wire.close()

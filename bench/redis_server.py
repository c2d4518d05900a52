"""Runs a real redis-server for benchmarks and tests."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError
from redis.retry import Retry

STARTS_WITHIN_S = 10.0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@dataclass
class RedisServer:
    """A separate `redis-server` that keeps nothing on disk. `options` are its command line's."""

    options: tuple[str, ...] = ()
    port: int = field(default_factory=_free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """Returns a client that is independent of the code under test."""
        return redis.Redis(port=self.port, protocol=2, retry=Retry(NoBackoff(), 0))

    def start(self) -> None:
        """Starts it, and returns when it answers, if only with a refusal."""
        path = shutil.which("redis-server")
        assert path, "this needs redis-server: apt-get install redis-server"
        plain = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--loglevel", "warning")
        command = [path, "--port", str(self.port), *plain, *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not self._answers():
            assert time.monotonic() < deadline, "redis-server does not start"
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends it, with everything in it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        with contextlib.closing(self.client()) as client:
            try:
                client.ping()
            except AuthenticationError:
                return True
            except ConnectionError:
                return False
        return True


@contextlib.contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """Runs one, and ends it afterwards."""
    server = RedisServer(options)
    server.start()
    try:
        yield server
    finally:
        server.stop()

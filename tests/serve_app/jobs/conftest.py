"""Where jobs are kept: a Redis that runs and is empty, or none."""

import pytest

from bench.redis_server import RedisServer


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    if server.process is None or server.process.poll() is not None:
        server.start()
    with server.client() as client:
        client.flushall()
    return server


@pytest.fixture(params=["memory", "redis"])
def redis_or_none(request: pytest.FixtureRequest) -> RedisServer | None:
    """Both stores of jobs, by turns."""
    if request.param == "memory":
        return None
    found: RedisServer = request.getfixturevalue("redis")
    return found

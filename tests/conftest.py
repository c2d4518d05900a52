"""Keeps what engines measure out of the home folder, and out of the reach of other runs; and a real Redis."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.redis_server import RedisServer, redis_server

if TYPE_CHECKING:
    import redis


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for this run, for its child processes too."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A real Redis of the module's own, that its tests may stop."""
    with redis_server() as running:
        yield running


@pytest.fixture
def inside(server: RedisServer) -> "Iterator[redis.Redis]":
    """What somebody else sees and does in that Redis, which is empty at first."""
    with contextlib.closing(server.client()) as client:
        client.flushall()
        yield client

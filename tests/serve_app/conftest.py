"""A scripted backend, and a client of the API over it."""

from collections.abc import AsyncIterator

import httpx
import pytest

from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.serve_app.fakes import FakeBackend, http


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(backend: FakeBackend) -> DiffusionService:
    return DiffusionService(backend)


@pytest.fixture
async def client(service: DiffusionService) -> AsyncIterator[httpx.AsyncClient]:
    async with http(create_api(service)) as client:
        yield client

"""A scripted backend, and a client of the API over it."""

import logging
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from deployments.serve_log import SERVE_LOGGER
from serve_app.api.application import create_api
from serve_app.observability.logs import LOGGERS
from serve_app.service import DiffusionService
from tests.serve_app.fakes import FakeBackend, http


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """They are the process' own, and whatever serves sets them up."""
    loggers = [logging.getLogger(name) for name in (*LOGGERS, SERVE_LOGGER, "py.warnings")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(backend: FakeBackend) -> DiffusionService:
    return DiffusionService(backend)


@pytest.fixture
async def client(service: DiffusionService) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(service)
    async with http(app) as client:
        yield client
    await app.state.jobs.stop()

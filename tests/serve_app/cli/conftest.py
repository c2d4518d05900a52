"""A real server for commands to ask, over the backend of their tests."""

from collections.abc import Iterator

import pytest

from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.serve_app.servers import http_server


@pytest.fixture
def url(service: DiffusionService) -> Iterator[str]:
    with http_server(create_api(service)) as served:
        yield served

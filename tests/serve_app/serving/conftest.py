"""One server on a real local Ray for the tests of several files: it takes about as long to start as they take."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from serve_app.config.server import AppConfig
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.serve_app.servers import Launched, ray_server, tiny_config


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """It serves the tiny model, and trains."""
    folder = tmp_path_factory.mktemp("serving")
    save_tiny_checkpoint(folder / "tiny")
    config = tiny_config(folder / "tiny").model_dump(exclude_unset=True) | {
        "loras": {"folder": str(folder / "loras")},
        "training": {"folder": str(folder / "trainings"), "device": "cpu", "num_cpus": 0.1},
    }
    with ray_server(AppConfig.model_validate(config), folder) as server:
        yield server


@pytest.fixture
async def client(server: Launched) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client

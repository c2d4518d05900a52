"""Updates and scaling on a real local Ray, under load: no request fails, whatever Serve starts and stops meanwhile."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.config.server import AppConfig
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.serve_app.redeployer import Redeployable, redeployable
from tests.serve_app.servers import tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

URL = "/ads/v2/diffusion/text-to-image"
PROMPT: dict[str, Any] = {"prompt": "a red cup", "width": 64, "height": 64}

# A replica in a hurry: quick to grow, quick to go.
QUICK = {"upscale_delay_s": 0.5, "downscale_delay_s": 2.0, "look_back_period_s": 2.0, "metrics_interval_s": 0.5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("updates") / "tiny")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Redeployable]:
    """ONE cluster for all tests of this file; each deploys what it needs."""
    with redeployable(tiny_config(checkpoint, graceful_shutdown_timeout_s=60)) as server:
        yield server


def patient(checkpoint: Path, **deployment: Any) -> AppConfig:
    return tiny_config(checkpoint, graceful_shutdown_timeout_s=60, start_attempts=1, **deployment)


@asynccontextmanager
async def load(server: Redeployable, callers: int, steps: int = 20) -> AsyncIterator[Counter[int]]:
    """So many callers, each with its next request as soon as the last is answered. Gives the answers' statuses."""
    statuses: Counter[int] = Counter()
    over = asyncio.Event()

    async def asks() -> None:
        while not over.is_set():
            statuses[(await client.post(URL, json=PROMPT | {"num_inference_steps": steps})).status_code] += 1

    async with (
        httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=120) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(callers):
            group.create_task(asks())
        try:
            yield statuses
        finally:
            over.set()


async def until(holds: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def test_an_update_under_load_fails_nobody(server: Redeployable, checkpoint: Path) -> None:
    (before,) = server.replicas()
    async with load(server, callers=3) as statuses:
        await until(lambda: statuses.total() >= 6)
        assert await asyncio.to_thread(server.deploy, patient(checkpoint, max_rows=8)) == "ready"
        await until(lambda: server.replicas() not in ([], [before]) and before not in server.replicas())
        seen = statuses.total()
        await until(lambda: statuses.total() >= seen + 6)
    assert set(statuses) == {200}


async def test_a_version_that_cannot_load_leaves_the_old_one_serving(
    server: Redeployable, checkpoint: Path, tmp_path: Path
) -> None:
    config = patient(checkpoint)
    broken = config.model_dump(mode="json", exclude_unset=True)
    broken["models"][0] |= {"source": str(tmp_path), "native_size": 64}
    async with load(server, callers=2) as statuses:
        assert await asyncio.to_thread(server.deploy, AppConfig.model_validate(broken)) == "failed"
        seen = statuses.total()
        await until(lambda: statuses.total() >= seen + 6)
    assert set(statuses) == {200}


async def test_replicas_come_with_the_work_and_go_with_it(server: Redeployable, checkpoint: Path) -> None:
    autoscaling = QUICK | {"min_replicas": 1, "max_replicas": 2}
    config = patient(checkpoint, max_rows=2, autoscaling=autoscaling)
    assert await asyncio.to_thread(server.deploy, config) == "ready"
    await until(lambda: len(server.replicas()) == 1)
    # So many steps that the engine is what keeps callers waiting, on fast machines as well.
    async with load(server, callers=6, steps=100) as statuses:
        await until(lambda: len(server.replicas()) == 2)
        seen = statuses.total()
        await until(lambda: statuses.total() >= seen + 12)
    assert set(statuses) == {200}
    await until(lambda: len(server.replicas()) == 1)


async def test_a_deployment_that_sleeps_wakes_for_a_request(server: Redeployable, checkpoint: Path) -> None:
    config = patient(checkpoint, autoscaling=QUICK | {"min_replicas": 0, "max_replicas": 1})
    assert await asyncio.to_thread(server.deploy, config) == "ready"
    await until(lambda: server.replicas() == [])
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=120) as client:
        answer = await client.post(URL, json=PROMPT)
    assert answer.status_code == 200, answer.text

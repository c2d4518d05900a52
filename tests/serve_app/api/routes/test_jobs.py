"""Jobs over HTTP: submitted, read, followed, fetched and cancelled, by their own tenant only."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from PIL import Image

from deployments.engine.protocol.errors import NumericalFailure
from deployments.engine.protocol.events import Accepted, Failed
from serve_app.api.application import create_api
from serve_app.client import ServerEvent, parse_events
from serve_app.config.sections import JobsConfig
from serve_app.service import DiffusionService
from tests.serve_app.api.routes.test_cancel import Named
from tests.serve_app.fakes import EVENTS, FakeBackend, http, slow, success, until

BATCH = "/ads/v2/diffusion/batch-generate"
JOBS = "/ads/v2/diffusion/jobs"
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
async def client(service: DiffusionService) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(service)
    async with http(Named(app)) as client:
        yield client
    await app.state.jobs.stop()


async def submitted(client: httpx.AsyncClient, *more: dict[str, Any], tenant: str = "") -> str:
    entries = [{"prompt": f"cup {i}", "seed": i, **each} for i, each in enumerate(more)]
    answer = await client.post(BATCH, json={"requests": entries}, headers=ASYNC | {"x-tenant": tenant})
    assert answer.status_code == 202
    url: str = answer.headers["location"]
    return url


async def ended(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while (job := (await client.get(url)).json())["state"] in ("queued", "running"):
            await asyncio.sleep(0.01)
    found: dict[str, Any] = job
    return found


async def events_of(client: httpx.AsyncClient, url: str, **headers: str) -> list[ServerEvent]:
    answer = await client.get(f"{url}/events", headers=EVENTS | headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return list(parse_events([*answer.text.splitlines(), ""]))


async def test_a_job_tells_what_has_come_of_each_entry(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda request: (
        [Failed(request.id, NumericalFailure("not finite"))] if request.params.seed == 3 else success(request)
    )
    job = await ended(client, await submitted(client, {"num_images": 2}, {"width": 3}, {}, {}))
    assert (job["state"], job["entries"], job["succeeded"], job["failed"]) == ("succeeded", 4, 2, 2)
    assert [(entry["index"], entry["status"]) for entry in job["results"]] == [(0, 200), (1, 422), (2, 200), (3, 500)]
    assert job["results"][1]["errors"][0]["pointer"] == "#/requests/1/width"
    assert {entry["id"] for entry in job["results"]} == {f"{job['id']}:{i}" for i in range(4)}
    assert job["progress"] == 1
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert job["durable"] is False
    assert "data" not in job["results"][0]["images"][0]


async def test_a_job_of_which_nothing_came_has_failed(client: httpx.AsyncClient) -> None:
    job = await ended(client, await submitted(client, {"width": 3}, {"model_name": "gone"}))
    assert (job["state"], job["succeeded"], job["failed"]) == ("failed", 0, 2)


async def test_pictures_are_fetched_one_by_one(client: httpx.AsyncClient) -> None:
    job = await ended(client, await submitted(client, {"num_images": 2, "output_format": "webp", "width": 128}))
    for number, told in enumerate(job["results"][0]["images"]):
        answer = await client.get(told["url"])
        assert answer.headers["content-type"] == "image/webp"
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert picture.size == (128, 64)
        assert told["seed"] == number
    for missing in ("0/2", "1/0", "0/-1"):
        assert (await client.get(f"{job['url']}/images/{missing}")).status_code == 404


async def test_a_job_can_be_followed_and_followed_again(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda request: [Accepted(request.id, 0), (request.params.seed or 0) / 20, *success(request)]
    url = await submitted(client, {}, {}, {"width": 3}, {})
    events = await events_of(client, url)
    told = [event for event in events if event.name != "progress"]
    assert [event.name for event in told] == ["job", "entry", "entry", "entry", "entry", "done"]
    assert [event.data["index"] for event in told[1:-1]] == [2, 0, 1, 3]
    assert told[2].data["images"][0]["url"].endswith("/images/0/0")
    assert (told[-1].data["state"], told[-1].data["succeeded"]) == ("succeeded", 3)
    again = await events_of(client, url, **{"last-event-id": "3"})
    assert [event.name for event in again] == ["job", "entry", "done"]
    assert again[1].data["index"] == 3
    for nonsense in ("x", "-1", "", "9" * 50):
        assert len(await events_of(client, url, **{"last-event-id": nonsense})) == 6


async def test_entries_of_a_stream_have_ids(client: httpx.AsyncClient) -> None:
    url = await submitted(client, {}, {})
    await ended(client, url)
    text = (await client.get(f"{url}/events")).text
    assert [line for line in text.splitlines() if line.startswith("id:")] == ["id: 1", "id: 2"]


async def test_cancelling_is_idempotent(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = slow
    url = await submitted(client, {}, {})
    await until(lambda: backend.running == 2)
    for _ in range(3):
        answer = await client.delete(url)
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert backend.running == 0


async def test_a_job_that_is_over_stays_as_it_is(client: httpx.AsyncClient) -> None:
    url = await submitted(client, {})
    before = await ended(client, url)
    assert (await client.delete(url)).json() == before


@pytest.mark.parametrize("unknown", ["0" * 32, "x", "A" * 32, "lease", "%2e%2e", "a:lease"])
async def test_an_unknown_job_is_not_found(client: httpx.AsyncClient, unknown: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/images/0/0")):
        answer = await client.request(method, f"{JOBS}/{unknown}{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_others_jobs_are_not_found(client: httpx.AsyncClient) -> None:
    url = await submitted(client, {}, tenant="me")
    for tenant, status in (("me", 200), ("them", 404), ("", 404)):
        headers = {"x-tenant": tenant}
        assert (await client.get(url, headers=headers)).status_code == status
        assert (await client.get(f"{url}/events", headers=headers)).status_code == status
        assert (await client.get(f"{url}/images/0/0", headers=headers)).status_code == status
        assert len((await client.get(JOBS, headers=headers)).json()["jobs"]) == (status == 200)
        if tenant != "me":
            assert (await client.delete(url, headers=headers)).status_code == 404


async def test_a_tenant_with_too_many_jobs_is_told_when_to_come_back(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = slow
    for _ in range(JobsConfig().waiting_per_tenant):
        await submitted(client, {}, tenant="me")
    body = {"requests": [{"prompt": "a cup"}]}
    refused = await client.post(BATCH, json=body, headers=ASYNC | {"x-tenant": "me"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
    assert (refused.json()["error"]["code"], refused.json()["error"]["param"]) == ("rate_limited", "unfinished_jobs")
    await submitted(client, {}, tenant="them")


async def test_the_newest_job_is_listed_first_without_results(client: httpx.AsyncClient) -> None:
    urls = [await submitted(client, {}) for _ in range(3)]
    jobs = (await client.get(JOBS)).json()["jobs"]
    assert [job["url"] for job in jobs] == urls[::-1]
    assert "results" not in jobs[0]


async def test_progress_is_told_while_it_runs(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda request: slow(request) if request.params.seed else success(request)
    url = await submitted(client, {}, {})
    await until(lambda: len(backend.asked) == 2)
    async with asyncio.timeout(2):
        while (job := (await client.get(url)).json())["progress"] < 0.5:
            await asyncio.sleep(0.01)
    assert (job["state"], job["progress"]) == ("running", 0.51)
    await client.delete(url)

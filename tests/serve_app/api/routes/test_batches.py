"""The endpoint for batches: answers in order, each with its own status, as JSON, as a stream, or as a job."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from deployments.engine.protocol.errors import NumericalFailure, Overloaded
from deployments.engine.protocol.events import Accepted, Failed
from deployments.engine.protocol.request import Request
from serve_app.api.application import create_api
from serve_app.client import ServerEvent, parse_events
from serve_app.config.sections import JobsConfig
from serve_app.service import DiffusionService
from tests.serve_app.api.responses.test_disconnect import Caller, scope_of
from tests.serve_app.fakes import EVENTS, FakeBackend, Step, failing, http, slow, success, until

BATCH = "/ads/v2/diffusion/batch-generate"
GUIDES = {
    "requests": [
        {"prompt": "Modern coffee advertisement", "guidance_scale": 7.5},
        {"prompt": "Luxury coffee advertisement", "guidance_scale": 8.0},
    ],
    "priority": "normal",
}


def cups(*more: dict[str, Any]) -> dict[str, Any]:
    return {"requests": [{"prompt": f"cup {i}", "seed": i, **each} for i, each in enumerate(more)]}


def events_of(text: str) -> list[ServerEvent]:
    return list(parse_events([*text.splitlines(), ""]))


async def test_the_guides_example_works(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = await client.post(BATCH, json=GUIDES, headers={"x-request-id": "mine"})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["id"], body["succeeded"], body["failed"]) == ("mine", 2, 0)
    assert [(entry["index"], entry["status"], entry["id"]) for entry in body["results"]] == [
        (0, 200, "mine:0"),
        (1, 200, "mine:1"),
    ]
    assert [entry["parameters"]["guidance_scale"] for entry in body["results"]] == [7.5, 8.0]
    assert base64.b64decode(body["results"][1]["images"][0]["data"]).startswith(b"\x89PNG")


async def test_answers_are_in_order_whoever_is_done_first(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda request: [Accepted(request.id, 0), (3 - (request.params.seed or 0)) / 50, *success(request)]
    results = (await client.post(BATCH, json=cups({}, {}, {}, {}))).json()["results"]
    assert [entry["index"] for entry in results] == [0, 1, 2, 3]
    assert [entry["images"][0]["seed"] for entry in results] == [0, 1, 2, 3]


async def test_a_bad_entry_fails_alone_and_says_where(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda request: (
        [Failed(request.id, NumericalFailure("not finite"))] if request.params.seed == 4 else success(request)
    )
    asked = cups({}, {"width": 511, "steps": 3}, {"width": 2048, "height": 2048}, {"model_name": "gone"}, {})
    asked["requests"] += [7, {"num_images": 2}, [[]]]
    answer = await client.post(BATCH, json=asked)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [entry["status"] for entry in results] == [200, 422, 422, 404, 500, 422, 422, 422]
    assert (answer.json()["succeeded"], answer.json()["failed"]) == (1, 7)
    pointers = [[fault["pointer"] for fault in entry.get("errors", ())] for entry in results]
    assert sorted(pointers[1]) == ["#/requests/1/steps", "#/requests/1/width"]
    assert pointers[2:] == [
        ["#/requests/2/width"],
        ["#/requests/3/model_name"],
        [],
        ["#/requests/5"],
        ["#/requests/6/prompt"],
        ["#/requests/7"],
    ]
    assert results[1]["error"]["code"] == "not_a_multiple"
    assert results[1]["error"]["param"] == "requests/1/width"
    assert results[1]["request_id"] == results[1]["id"]


async def test_an_entry_with_some_images_tells_of_both(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = failing(NumericalFailure("not finite"), 1)
    (entry,) = (await client.post(BATCH, json=cups({"num_images": 3}))).json()["results"]
    assert (entry["status"], len(entry["images"]), len(entry["failures"])) == (200, 2, 1)


async def test_equal_entries_are_made_once_and_both_answered(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    results = (await client.post(BATCH, json=cups({}, {"seed": 0, "prompt": "cup 0"}))).json()["results"]
    assert [entry["index"] for entry in results] == [0, 1]
    assert results[0]["images"] == results[1]["images"]
    assert len(backend.asked) == 1


async def test_the_batchs_priority_is_for_entries_that_say_none(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = cups({}, {"priority": "high", "deadline_ms": 5000}) | {"priority": "low", "deadline_ms": 60_000}
    await client.post(BATCH, json=body)
    first, second = (request.params for request in backend.asked)
    assert (first.priority, second.priority) == ("low", "high")
    assert 59_000 < (first.deadline_ms or 0) <= 60_000
    assert 4_000 < (second.deadline_ms or 0) <= 5_000


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({}, "required", "#/requests"),
        ({"requests": []}, "too_short", "#/requests"),
        ({"requests": "cups"}, "wrong_type", "#/requests"),
        ({"requests": [{}], "priority": "urgent"}, "not_allowed", "#/priority"),
        ({"requests": [{}], "deadline_ms": 0}, "too_small", "#/deadline_ms"),
        ({"requests": [{}], "priorty": "low"}, "unknown_field", "#/priorty"),
        ({"requests": [{}], "steps": 5}, "unknown_field", "#/steps"),
        ({"requests": [{}] * 6}, "batch_too_large", "#/requests"),
        ({"requests": [{"prompt": "a", "num_images": 9}, {"prompt": "b"}]}, "batch_too_large", "#/requests"),
    ],
)
async def test_a_batch_that_is_wrong_as_a_whole_is_refused(
    service: DiffusionService, backend: FakeBackend, body: dict[str, Any], code: str, pointer: str
) -> None:
    app = create_api(service, jobs_config=JobsConfig(max_entries=5, max_images=9, sync_images=9))
    async with http(app) as client:
        answer = await client.post(BATCH, json=body)
    assert answer.status_code == 422
    assert [(fault["code"], fault["pointer"]) for fault in answer.json()["errors"]] == [(code, pointer)]
    assert not backend.asked


async def test_a_full_engine_does_not_refuse_a_batch(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    refused = set()

    def script(request: Request) -> Sequence[Step]:
        if request.name in refused:
            return success(request)
        refused.add(request.name)
        return [Failed(request.id, Overloaded("full", 0.01))]

    backend.script = script
    answer = await client.post(BATCH, json=cups({}, {}, {}))
    assert answer.json()["succeeded"] == 3


async def test_a_stream_tells_each_entry_as_it_is_done(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda request: [Accepted(request.id, 0), (3 - (request.params.seed or 0)) / 50, *success(request)]
    headers = EVENTS | {"x-request-id": "mine"}
    body = cups({}, {"width": 3}, {}, {})
    events = events_of((await client.post(BATCH, json=body, headers=headers)).text)
    assert [event.name for event in events] == ["progress", *["entry"] * 4, "done"]
    assert events[0].data == {"id": "mine", "entries": 4}
    assert [(event.data["index"], event.data["status"]) for event in events[1:-1]] == [
        (1, 422),
        (3, 200),
        (2, 200),
        (0, 200),
    ]
    assert events[2].data["images"][0]["seed"] == 3
    assert events[-1].data == {"id": "mine", "succeeded": 3, "failed": 1}


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_client_that_leaves_cancels_all_entries(
    service: DiffusionService, backend: FakeBackend, accept: str
) -> None:
    backend.script = slow
    app, caller = create_api(service), Caller(cups({}, {}, {}))
    scope = scope_of(accept) | {"path": BATCH, "raw_path": BATCH.encode()}
    call = asyncio.create_task(app(scope, caller.receive, caller.send))
    await until(lambda: backend.running == 3)
    caller.left.set()
    await asyncio.wait_for(call, 2)
    assert backend.running == 0
    assert len(backend.cancelled) == 3


async def test_a_batch_can_be_cancelled_by_its_id(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda request: success(request) if request.params.seed == 1 else slow(request)
    asked = asyncio.create_task(client.post(BATCH, json=cups({}, {}, {}), headers={"x-request-id": "mine"}))
    await until(lambda: backend.running == 2 and len(backend.asked) == 3)
    assert (await client.delete("/ads/v2/diffusion/requests/mine")).json() == {"id": "mine", "cancelled": True}
    assert [entry["status"] for entry in (await asked).json()["results"]] == [499, 200, 499]


@pytest.mark.parametrize("prefer", ["respond-async", "wait=10, Respond-Async", "respond-async;x=1"])
async def test_a_client_that_need_not_wait_gets_a_job(client: httpx.AsyncClient, prefer: str) -> None:
    answer = await client.post(BATCH, json=GUIDES, headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["location"] == answer.json()["url"] == f"/ads/v2/diffusion/jobs/{answer.json()['id']}"
    assert answer.json()["entries"] == 2


async def test_what_is_too_large_to_wait_for_becomes_a_job(service: DiffusionService) -> None:
    app = create_api(service, jobs_config=JobsConfig(sync_images=3))
    async with http(app) as client:
        small = await client.post(BATCH, json=cups({}, {"num_images": 2}))
        large = await client.post(BATCH, json=cups({}, {"num_images": 2}, {}))
    await app.state.jobs.stop()
    assert (small.status_code, large.status_code) == (200, 202)
    assert "preference-applied" not in large.headers

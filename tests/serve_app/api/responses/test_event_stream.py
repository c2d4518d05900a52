"""The stream of events."""

import asyncio
import json
from collections.abc import AsyncGenerator

import httpx
import pytest

from deployments.engine.protocol.errors import EngineStopped, InvalidParameter, NumericalFailure
from deployments.engine.protocol.events import Accepted, Failed, Preview
from serve_app.api.responses import event_stream
from serve_app.client import ServerEvent, parse_events
from tests.serve_app.fakes import EVENTS, PATH, FakeBackend, failing, refusing, success

CUP = {"prompt": "a red cup", "seed": 7, "num_inference_steps": 20, "sampler": "heun"}


async def stream_of(client: httpx.AsyncClient, body: dict[str, object]) -> list[ServerEvent]:
    response = await client.post(PATH, json=body, headers=EVENTS)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    return list(parse_events(response.text.splitlines()))


async def test_a_stream_is_progress_then_images_then_done(client: httpx.AsyncClient) -> None:
    events = await stream_of(client, {**CUP, "num_images": 2, "style_preset": "luxury"})
    assert [event.name for event in events] == ["progress"] * 3 + ["image"] * 2 + ["done"]
    assert events[0].data.pop("id") == events[-1].data["id"]
    assert events[0].data == {"step": 0, "steps": 2, "position": 0, "seconds_to_start": 0.0, "seconds_left": 0.0}
    assert events[2].data == {"step": 2, "steps": 2, "position": 0}
    done = events[-1].data
    assert set(done) == {"id", "model", "effective_prompt", "parameters", "timings", "cached"}
    assert (done["model"], done["parameters"]["seed"], done["parameters"]["prompt"]) == ("tiny", 7, "a red cup")


async def test_an_image_event_is_what_the_json_answer_holds(client: httpx.AsyncClient) -> None:
    images = [event.data for event in await stream_of(client, CUP) if event.name == "image"]
    assert images == (await client.post(PATH, json=CUP)).json()["images"]


async def test_every_event_has_an_id_and_proxies_are_told_not_to_hold_it(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, json=CUP, headers=EVENTS)
    ids = [line for line in response.text.splitlines() if line.startswith("id: ")]
    assert ids == [f"id: {number}" for number in range(1, len(ids) + 1)]
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")


async def test_previews_come_as_base64(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda request: [
        Accepted(request.id, 2),
        Preview(request.id, 0, 5, b"jpeg"),
        *success(request)[1:],
    ]
    events = await stream_of(client, CUP)
    assert events[0].data["position"] == 2
    assert events[1] == ServerEvent("preview", {"index": 0, "step": 5, "data": "anBlZw=="})


async def test_a_refusal_before_the_stream_is_a_proper_status(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = refusing(InvalidParameter("prompt", "has too many tokens"))
    response = await client.post(PATH, json=CUP, headers=EVENTS)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "prompt")


async def test_a_failed_image_is_told_and_done_sums_it_up(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = failing(NumericalFailure("not finite"), 0)
    events = await stream_of(client, {**CUP, "num_images": 2})
    assert [event.name for event in events][-3:] == ["failed", "image", "done"]
    assert events[-1].data["failures"] == [events[-3].data]
    assert events[-3].data["code"] == "numerical_failure"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ([lambda r: Failed(r, EngineStopped("it stopped"))], "engine_stopped"),
        ([lambda _: RuntimeError("SECRET")], "internal_error"),
        ([], "engine_stopped"),
    ],
    ids=["the engine stops", "a bug", "it just ends"],
)
async def test_a_stream_always_says_how_it_ended(
    client: httpx.AsyncClient, backend: FakeBackend, end: list[object], code: str
) -> None:
    backend.script = lambda request: [Accepted(request.id, 0), *(step(request.id) for step in end)]  # type: ignore[operator]
    events = await stream_of(client, CUP)
    assert [event.name for event in events] == ["progress", "error"]
    assert events[-1].data["error"]["code"] == code
    assert "SECRET" not in str(events[-1].data)


async def test_when_all_images_fail_the_last_event_is_an_error(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = failing(NumericalFailure("not finite"), 0)
    events = await stream_of(client, CUP)
    assert [event.name for event in events][-2:] == ["failed", "error"]
    assert events[-1].data["status"] == 500


async def test_silence_is_filled_with_comments(
    client: httpx.AsyncClient, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "KEEPALIVE_SECONDS", 0.02)
    backend.script = lambda request: [Accepted(request.id, 0), 0.1, *success(request)[1:]]
    response = await client.post(PATH, json=CUP, headers=EVENTS)
    assert response.text.count("\n: ") >= 2
    assert list(parse_events(response.text.splitlines()))[-1].name == "done"


async def test_closing_patient_iteration_closes_what_it_waits_for() -> None:
    closed = asyncio.Event()

    async def never() -> AsyncGenerator[int, None]:
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            closed.set()

    silent = event_stream.mark_silence(never(), 0.01)
    assert await anext(silent) is None
    await silent.aclose()
    assert closed.is_set()


def test_data_of_several_lines_and_comments_are_parsed() -> None:
    lines = [": hello", "", "event: a", "data: {", 'data: "b": 1}', "id: 1", "", "event: c"]
    assert list(parse_events(lines)) == [ServerEvent("a", json.loads('{"b": 1}'))]

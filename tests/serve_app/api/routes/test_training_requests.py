"""Requests about trainings: forms as curl sends them, sent twice, after the end, and with numbers that are none."""

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.engine.protocol.spec import ModelSpec
from deployments.training.lora.run_folder import LossPoint, RunFolder
from serve_app.trainings.runner import TrainingRunner
from tests.deployments.training.lora.pictures import picture
from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.api.routes.test_trainings import (
    BASE,
    OURS,
    Waiting,
    app_of,
    archive,
    begin,
    events_of,
    trainings_in,
)
from tests.serve_app.fakes import http

FIELDS = {"name": "cup", "trigger": "cup", "model_name": "tiny"}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server whose trainings wait for ever."""
    trainings = trainings_in(tmp_path, ModelSpec("tiny", "nowhere"), TrainingRunner(Waiting), unfinished=4)
    async with http(app_of(tmp_path, trainings)) as client:
        client.headers["Authorization"] = f"Bearer {OURS}"
        yield client
    trainings.stop()


async def send(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return await client.post(BASE, files={"zip": archive()}, data=FIELDS | fields, headers=headers)


def run_of(folder: Path, answer: httpx.Response) -> RunFolder:
    assert answer.status_code == 202, answer.text
    return RunFolder(folder / "trainings" / answer.json()["id"])


async def test_settings_may_be_sent_as_fields(client: httpx.AsyncClient, tmp_path: Path) -> None:
    begun = await send(client, sample_prompts="a {trigger}", max_minutes="", steps="7", unrelated_prompts=["1", "2"])
    asked = run_of(tmp_path, begun).read_settings()
    assert asked is not None
    assert (asked.sample_prompts, asked.max_minutes, asked.steps) == (("a {trigger}",), None, 7)
    assert asked.unrelated_prompts == ("1", "2")
    doubled = assert_problem(await send(client, steps="7", params='{"steps": 8}'), 422, "invalid_parameter")
    assert doubled["error"]["param"] == "steps"
    odd = assert_problem(await send(client, trigger="tür".encode("latin-1")), 422, "invalid_parameter")
    assert odd["error"]["param"] == "trigger"


async def test_a_training_that_is_asked_for_twice_is_begun_once(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "once"}
    first, again = [await send(client, key) for _ in range(2)]
    assert (first.json(), first.headers["location"]) == (again.json(), again.headers["location"])
    assert again.headers["idempotent-replayed"] == "true"
    assert len((await client.get(BASE)).json()["trainings"]) == 1
    other = await client.post(BASE, files={"zip": archive(2)}, data=FIELDS, headers=key)
    assert_problem(other, 422, "idempotency_key_reused")


async def test_a_training_that_is_over_is_removed_when_it_is_deleted(client: httpx.AsyncClient, tmp_path: Path) -> None:
    begun = await begin(client)
    run, place = run_of(tmp_path, begun), begun.headers["location"]
    assert (await client.delete(place)).json()["id"] == begun.json()["id"]
    while run.read_progress().state != "cancelled":
        await client.get(place)
    removed = await client.delete(place)
    assert (removed.status_code, removed.content) == (204, b"")
    assert_problem(await client.get(place), 404, "training_not_found")
    assert not run.path.exists()


async def test_numbers_that_are_not_finite_are_left_out_of_all_answers(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    begun = await begin(client)
    run = run_of(tmp_path, begun)
    run.append_loss(LossPoint(1, 0.5, math.nan, math.inf))
    run.change_progress(state="failed", loss=math.nan, validation_loss=math.inf)
    (listed,) = (await client.get(BASE)).json()["trainings"]
    assert (listed["loss"], listed["validation_loss"]) == (None, None)
    told = (await client.get(begun.headers["location"])).json()
    assert told["losses"] == [{"step": 1, "loss": 0.5, "prior_loss": None, "validation_loss": None}]
    events = events_of(await client.get(f"{begun.headers['location']}/events"))
    assert [name for _, name, _ in events] == ["training", "done"]


async def test_a_stream_that_cannot_go_on_ends_with_an_error(
    client: httpx.AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = await begin(client)
    (run_of(tmp_path, begun).path / "losses.jsonl").write_bytes(b"\xff")
    (_, name, told) = events_of(await client.get(f"{begun.headers['location']}/events"))[-1]
    assert (name, told["error"]["code"]) == ("error", "internal_error")
    assert "unexpected error" in caplog.text


async def test_no_more_is_unpacked_than_is_allowed(tmp_path: Path) -> None:
    trainings = trainings_in(
        tmp_path, ModelSpec("tiny", "nowhere"), TrainingRunner(Waiting), limits={"megabytes": 1, "pictures": 5}
    )
    async with http(app_of(tmp_path, trainings)) as client:
        client.headers["Authorization"] = f"Bearer {OURS}"
        large = [("pictures", picture() + bytes(300_000)) for _ in range(4)]
        problem = assert_problem(await client.post(BASE, files=large, data=FIELDS), 422, "invalid_parameter")
        assert problem["error"]["param"] == "pictures"
        assert "1,000,000 bytes together" in problem["error"]["message"]
    trainings.stop()

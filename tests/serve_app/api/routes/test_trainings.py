"""Trainings by HTTP: pictures become a LoRA that is served; a tenant sees its own; limits, and being off, are told."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI

from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.catalogue import LoraCatalogue
from deployments.loras.versions import LoraVersions
from deployments.training.lora.run_folder import RunFolder
from serve_app.api.application import create_api
from serve_app.config.secret import Secret
from serve_app.config.sections import TrainingConfig
from serve_app.gateway.api_keys import Keyring, generate_key, hash_of
from serve_app.gateway.setup import Gateway
from serve_app.service import DiffusionService
from serve_app.trainings.manager import Trainings
from serve_app.trainings.runner import TrainingRunner
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.deployments.training.lora.pictures import picture
from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.fakes import FakeBackend, http

BASE = "/ads/v2/diffusion/trainings"
OURS, THEIRS, SMALL = (generate_key() for _ in range(3))
SETTINGS: dict[str, Any] = {
    "name": "cup",
    "trigger": "cup",
    "model_name": "tiny",
    "rank": 2,
    "steps": 4,
    "batch_size": 1,
    "prior_pictures": 0,
    "sample_prompts": ["a {trigger}"],
    "sample_every": 2,
    "evaluation_prompts": ["a {trigger}"],
    "unrelated_prompts": ["a cat"],
}


class Waiting:
    """A process that never begins, and ends when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.ended = False

    def poll(self) -> int | None:
        return 1 if self.ended else None

    def terminate(self) -> None:
        self.ended = True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return ModelSpec("tiny", str(save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")), native_size=64)


def trainings_in(folder: Path, model: ModelSpec, runner: TrainingRunner, **config: Any) -> Trainings:
    (folder / "loras").mkdir(exist_ok=True)
    settings = TrainingConfig(folder=str(folder / "trainings"), device="cpu", **config)
    return Trainings(settings, [model], LoraVersions(folder / "loras"), runner)


def app_of(folder: Path, trainings: Trainings | None) -> FastAPI:
    keys = [
        {"id": "ours", "hash": hash_of(OURS), "tenant": "acme", "scopes": ["train"]},
        {"id": "theirs", "hash": hash_of(THEIRS), "tenant": "other", "scopes": ["train"]},
        {"id": "small", "hash": hash_of(SMALL), "tenant": "acme", "scopes": ["train"], "training": {"steps": 3}},
    ]
    (folder / "keys.yaml").write_text(yaml.safe_dump(keys))
    keyring = Keyring(Secret(file=folder / "keys.yaml"))
    return create_api(DiffusionService(FakeBackend()), gateway=Gateway(keys=keyring), training=trainings)


@pytest.fixture
async def idle(tmp_path: Path, model: ModelSpec) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server whose trainings wait for ever."""
    trainings = trainings_in(tmp_path, model, TrainingRunner(Waiting), unfinished=2)
    async with http(app_of(tmp_path, trainings)) as client:
        client.headers["Authorization"] = f"Bearer {OURS}"
        yield client
    trainings.stop()


def archive(count: int = 3) -> bytes:
    """The same bytes at any time: a name alone would get the time of the day."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as entries:
        for number in range(count):
            entries.writestr(zipfile.ZipInfo(f"{number}.png"), picture(number))
            entries.writestr(zipfile.ZipInfo(f"{number}.txt"), "a red {trigger}")
    return file.getvalue()


async def begin(client: httpx.AsyncClient, key: str = OURS, **changes: Any) -> httpx.Response:
    params = json.dumps(SETTINGS | changes)
    headers = {"Authorization": f"Bearer {key}"}
    return await client.post(BASE, files={"zip": archive()}, data={"params": params}, headers=headers)


def events_of(response: httpx.Response) -> list[tuple[str | None, str, Any]]:
    """The id, the name and the data of each event of a stream that has ended."""
    assert response.headers["content-type"].startswith("text/event-stream")
    read = []
    for block in filter(None, response.text.split("\n\n")):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            read.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return read


async def test_pictures_become_a_lora_that_is_served(tmp_path: Path, model: ModelSpec) -> None:
    trainings = trainings_in(tmp_path, model, TrainingRunner())
    async with http(app_of(tmp_path, trainings)) as client:
        client.headers["Authorization"] = f"Bearer {OURS}"
        begun = await begin(client)
        assert begun.status_code == 202, begun.text
        place = begun.headers["location"]
        assert begun.json()["state"] == "queued"
        followed = asyncio.create_task(client.get(f"{place}/events"))
        too_early = await client.post(f"{place}/register")
        assert_problem(too_early, 422, "invalid_parameter")
        async with asyncio.timeout(120):
            while (found := (await client.get(place)).json())["state"] in ("queued", "running"):
                await asyncio.sleep(0.2)
        log = (tmp_path / "trainings" / found["id"] / "log.txt").read_text()
        assert (found["state"], found["step"], found["error"]) == ("succeeded", 4, ""), log
        assert [point["step"] for point in found["losses"]] == [1, 2, 3, 4]
        assert found["evaluation"]["drift"] is not None
        assert len(found["samples"]) == 2
        events = events_of(await followed)
        assert {name for _, name, _ in events[1:-1]} == {"progress", "sample"}
        assert [events[0][1], events[-1][1:]] == ["training", ("done", found)]
        samples = [(number, data["picture"]) for number, name, data in events if name == "sample"]
        assert samples == [("1", found["samples"][0]), ("2", found["samples"][1])]
        again = events_of(await client.get(f"{place}/events", headers={"Last-Event-ID": "1"}))
        assert [(number, name) for number, name, _ in again] == [(None, "training"), ("2", "sample"), (None, "done")]
        for link in (*found["samples"], found["sheet"]):
            shown = await client.get(link)
            assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
        # Whoever asks again, say after an answer that was lost, gets the same version.
        for _ in range(2):
            assert (await client.post(f"{place}/register")).json() == {"name": "cup", "version": 1}
        taken = await begin(client, THEIRS)
        assert_problem(taken, 422, "invalid_parameter")
        assert "somebody else's" in taken.json()["error"]["message"]
    assert [entry.spec.name for entry in LoraCatalogue(folder=tmp_path / "loras").entries()] == ["cup"]


async def test_pictures_may_come_one_by_one_with_their_captions(idle: httpx.AsyncClient, tmp_path: Path) -> None:
    pictures = [("pictures", picture(number)) for number in range(2)]
    fields = {
        "name": "cup",
        "trigger": "cup",
        "model_name": "tiny",
        "steps": "7",
        "captions_of_pictures": ["one", "two"],
    }
    begun = await idle.post(BASE, files=pictures, data=fields)
    assert begun.status_code == 202, begun.text
    home = tmp_path / "trainings" / begun.json()["id"]
    assert (home / "pictures" / "0001.txt").read_text() == "two"
    asked = RunFolder(home).read_settings()
    assert asked is not None
    assert asked.steps == 7


async def test_a_tenant_sees_its_own_only(idle: httpx.AsyncClient) -> None:
    place = (await begin(idle)).headers["location"]
    assert [each["name"] for each in (await idle.get(BASE)).json()["trainings"]] == ["cup"]
    theirs = {"Authorization": f"Bearer {THEIRS}"}
    assert (await idle.get(BASE, headers=theirs)).json() == {"trainings": []}
    for method, path in (
        ("GET", place),
        ("GET", f"{place}/events"),
        ("DELETE", place),
        ("POST", f"{place}/register"),
        ("POST", f"{place}/resume"),
    ):
        assert_problem(await idle.request(method, path, headers=theirs), 404, "training_not_found")
    assert_problem(await idle.get(f"{place}/pictures/owner.json"), 404, "image_not_found")
    assert_problem(await idle.get(f"{BASE}/..%2F..%2Fkeys.yaml"), 404, "not_found")


async def test_no_more_than_are_allowed_wait_and_a_cancelled_one_makes_room(idle: httpx.AsyncClient) -> None:
    place = (await begin(idle)).headers["location"]
    assert (await begin(idle)).status_code == 202
    refused = await begin(idle)
    assert_problem(refused, 503, "overloaded")
    second = (await idle.get(BASE)).json()["trainings"][0]["id"]
    assert (await idle.delete(f"{BASE}/{second}")).status_code == 200
    async with asyncio.timeout(10):
        while (await idle.get(f"{BASE}/{second}")).json()["state"] != "cancelled":
            await asyncio.sleep(0.1)
    assert (await begin(idle)).status_code == 202
    assert_problem(await idle.post(f"{place}/resume"), 422, "invalid_parameter")


async def test_one_that_nobody_runs_any_more_is_interrupted_and_can_go_on(
    idle: httpx.AsyncClient, tmp_path: Path, model: ModelSpec
) -> None:
    gone = trainings_in(tmp_path, model, TrainingRunner(Waiting))
    async with http(app_of(tmp_path, gone)) as other:
        place = (await begin(other)).headers["location"]
    gone.stop()
    assert (await idle.get(place)).json()["state"] == "interrupted"
    assert (await idle.post(f"{place}/resume")).json()["state"] == "queued"


@pytest.mark.parametrize(
    ("changes", "key", "status", "code", "param"),
    [
        ({"steps": 5000}, "ours", 422, "invalid_parameter", "steps"),
        ({"steps": 4}, "small", 422, "invalid_parameter", "steps"),
        ({"model_name": "SECRET"}, "ours", 404, "model_not_found", "model_name"),
        ({"name": "../SECRET"}, "ours", 422, "invalid_value", "name"),
        ({"rank": 1000}, "ours", 422, "too_large", "rank"),
        ({"rang": 4}, "ours", 422, "unknown_field", "rang"),
        ({"captions": "template"}, "ours", 422, "invalid_value", None),
    ],
)
async def test_what_is_wrong_is_named(
    idle: httpx.AsyncClient,
    tmp_path: Path,
    changes: dict[str, Any],
    key: str,
    status: int,
    code: str,
    param: str | None,
) -> None:
    own = {"ours": OURS, "small": SMALL}[key]
    problem = assert_problem(await begin(idle, own, **changes), status, code)
    assert problem["error"]["param"] == param
    assert not list((tmp_path / "trainings").glob("*"))


@pytest.mark.parametrize(
    ("files", "data", "param"),
    [
        ({}, {}, "zip"),
        ({"zip": b"no zip"}, {}, "pictures"),
        ({"pictures": b"no picture"}, {}, "pictures"),
        ({"zip": archive()}, {"captions_of_pictures": "a"}, "captions_of_pictures"),
        ({"pictures": picture()}, {"captions_of_pictures": ["a", "b"]}, "captions_of_pictures"),
    ],
)
async def test_files_that_do_not_fit_are_refused(
    idle: httpx.AsyncClient, files: dict[str, bytes], data: dict[str, Any], param: str
) -> None:
    sent: dict[str, Any] = {"data": {"params": json.dumps(SETTINGS)} | data, "files": files or {"": b""}}
    problem = assert_problem(await idle.post(BASE, **sent), 422, "invalid_parameter" if files else "unknown_file")
    assert problem["error"]["param"] == (param if files else None)


async def test_a_server_that_does_not_train_says_so(tmp_path: Path) -> None:
    async with http(app_of(tmp_path, None)) as client:
        client.headers["Authorization"] = f"Bearer {OURS}"
        assert_problem(await begin(client), 404, "training_off")
        assert_problem(await client.get(BASE), 404, "training_off")

"""The trainings of all tenants: places are counted, one goes on once, old ones go, and prompts follow the rules."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from deployments.engine.protocol.errors import BlockedPrompt, InvalidParameter, Overloaded
from deployments.engine.protocol.safety import CheckerSpec, SafetySpec
from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.versions import LoraVersions
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingSettings
from serve_app.config.sections import TrainingConfig
from serve_app.generation.blocklist import Blocklist, BlockRule
from serve_app.trainings import manager
from serve_app.trainings.manager import Training, Trainings
from serve_app.trainings.runner import TrainingRunner
from tests.deployments.training.lora.pictures import picture
from tests.serve_app.trainings.test_runner import Scripted

MODEL = ModelSpec("tiny", "nowhere")
CHECKED = replace(MODEL, name="checked", safety=SafetySpec("required", (CheckerSpec("nsfw"),)))
RULES = Blocklist([BlockRule("brands", ("acme",))])
FILES: Mapping[str, bytes] = {"0000.png": picture(), "0000.txt": b"a red {trigger}"}


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"name": "cup", "trigger": "cup", "model_name": "tiny"} | changes)


class Server:
    """The trainings of one server process, and what it has launched."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.launched: list[Scripted] = []
        self.runner = TrainingRunner(self.launch, at_once=8)
        self.trainings = Trainings(
            TrainingConfig(folder=str(folder / "trainings"), **config),
            [MODEL, CHECKED],
            LoraVersions(folder / "loras"),
            self.runner,
            RULES,
        )

    def launch(self, _: Path) -> Scripted:
        self.launched.append(Scripted())
        return self.launched[-1]

    async def start(self, tenant: str = "acme", files: Mapping[str, bytes] = FILES, **changes: Any) -> Training:
        return await self.trainings.start(tenant, settings(**changes), files, None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, unfinished=2, kept=2)
    yield made
    made.trainings.stop()


def ended(folder: Path, created: float, state: str = "succeeded", tenant: str = "acme") -> str:
    """Writes a training of another process."""
    run = RunFolder(folder / "trainings" / uuid4().hex)
    run.begin(settings())
    run.change_progress(state=state)
    run.beat()
    (run.path / "owner.json").write_text(json.dumps({"tenant": tenant, "created": created, "model": "tiny"}))
    return run.path.name


async def test_places_are_counted_over_all_processes_and_before_anything_is_read(
    tmp_path: Path, server: Server
) -> None:
    other = Server(tmp_path, unfinished=2)
    begun = await asyncio.gather(
        *(each.start() for each in (server, other) for _ in range(3)), server.start("else"), return_exceptions=True
    )
    assert sum(isinstance(each, Training) for each in begun) == 3
    assert sum(isinstance(each, Overloaded) for each in begun) == 4
    assert len(list((tmp_path / "trainings").glob("?" * 32))) == 3
    other.trainings.stop()


async def test_pictures_that_are_refused_leave_no_training_and_its_place(tmp_path: Path, server: Server) -> None:
    for _ in range(3):
        with pytest.raises(InvalidParameter, match="no picture"):
            await server.start(files={"0000.txt": b"x"})
    assert not server.trainings.of_tenant("acme")
    assert [path.name for path in (tmp_path / "trainings").iterdir()] == [".lock"]


async def test_old_trainings_count_and_go_however_many_there_are(tmp_path: Path) -> None:
    server = Server(tmp_path, unfinished=2, kept=3)
    now = time.time()
    running = [ended(tmp_path, now - 10_000, "running") for _ in range(2)]
    over = [ended(tmp_path, now - number) for number in range(110)]
    elsewhere = ended(tmp_path, 0, tenant="else")
    with pytest.raises(Overloaded):
        await server.start()
    RunFolder(tmp_path / "trainings" / running[0]).change_progress(state="failed")
    (tmp_path / "trainings" / ".removed-before").mkdir()
    begun = await server.start()
    left = {path.name for path in (tmp_path / "trainings").iterdir()} - {".lock"}
    assert left == {begun.id, running[1], elsewhere, *over[:3]}
    server.trainings.stop()


async def test_one_that_is_over_can_be_removed_unless_a_process_works_on_it(tmp_path: Path, server: Server) -> None:
    begun = await server.start()
    assert not server.trainings.cancel(begun)
    while not begun.is_over:
        await asyncio.sleep(0.05)
    with begun.run.held(), pytest.raises(InvalidParameter, match="another process"):
        server.trainings.cancel(begun)
    assert server.trainings.cancel(begun)
    assert server.trainings.find("acme", begun.id) is None
    assert not begun.run.path.exists()
    with pytest.raises(InvalidParameter, match="has removed"):
        server.trainings.cancel(begun)


async def test_one_that_was_interrupted_goes_on_once(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "_SILENT_S", 0.7)
    begun = await server.start()
    server.trainings.stop()
    assert begun.run.read_progress().state == "interrupted"
    begun.run.change_progress(state="running", step=7)
    await asyncio.sleep(0.8)
    # Nobody writes what everybody can see: who looks may be wrong.
    assert (begun.progress().state, begun.run.read_progress().state) == ("interrupted", "running")
    servers = [Server(tmp_path) for _ in range(3)]
    told: list[str] = []

    def resume(one: Server) -> None:
        try:
            told.append(one.trainings.resume(begun).state)
        except InvalidParameter:
            told.append("refused")

    threads = [threading.Thread(target=resume, args=(each,)) for each in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(told) == ["queued", "refused", "refused"]
    await asyncio.sleep(0.2)
    assert sum(len(each.launched) for each in servers) == 1
    for each in servers:
        each.trainings.stop()


async def test_one_whose_pictures_were_never_read_cannot_go_on(tmp_path: Path, server: Server) -> None:
    id = ended(tmp_path, time.time(), "failed")
    found = server.trainings.find("acme", id)
    assert found is not None
    with pytest.raises(InvalidParameter, match="begin another one"):
        server.trainings.resume(found)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("trigger", {"trigger": "acme"}),
        ("template", {"template": "an a.c.m.e {trigger}", "captions": "template"}),
        ("prior_prompts", {"prior_prompts": ["a cup", "an acme cup"]}),
        ("sample_prompts", {"sample_prompts": ["ac{trigger}e"], "trigger": "m"}),
        ("evaluation_prompts", {"evaluation_prompts": ["an ACME {trigger}"]}),
        ("unrelated_prompts", {"unrelated_prompts": ["acme"]}),
    ],
)
async def test_prompts_are_held_to_the_blocklist(server: Server, field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(BlockedPrompt) as refused:
        await server.start(**changes)
    assert (refused.value.field, refused.value.rule) == (field, "brands")
    assert not server.trainings.of_tenant("acme")


async def test_captions_are_held_to_the_blocklist(server: Server) -> None:
    with pytest.raises(BlockedPrompt) as refused:
        await server.start(files={**FILES, "0000.txt": b"an acme {trigger}"})
    assert (refused.value.field, server.trainings.of_tenant("acme")) == ("pictures", [])


async def test_what_must_be_checked_and_is_not_is_not_shown(server: Server) -> None:
    with pytest.raises(InvalidParameter, match="must be left out") as refused:
        await server.start(model_name="checked", sample_prompts=["a cup"])
    assert refused.value.field == "sample_prompts"
    shown = [await server.start(model_name=name) for name in ("tiny", "checked")]
    for training in shown:
        training.run.sheet.write_bytes(b"a sheet")
        training.run.sample(1, 0).write_bytes(b"a sample")
    found = [server.trainings.find("acme", each.id) for each in shown]
    pictures = [
        [server.trainings.picture(each, name) for name in ("before-after.png", "000001-00.png")]
        for each in found
        if each
    ]
    assert pictures == [[b"a sheet", b"a sample"], [None, None]]

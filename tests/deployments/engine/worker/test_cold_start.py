"""A start takes what an earlier one has measured; a program loads only what it asks for, and measures it later."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.engine import Engine
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.events import Event, Failed, Finished, ImageDone
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.sampling.samplers import DiffusionSchedulerFactory
from deployments.engine.worker import background, warm_up
from deployments.engine.worker.calibration_keeper import KIND
from deployments.engine.worker.engine_worker import EngineWorker
from tests.deployments.engine.harness import difference, pixels_of, request_for, run
from tests.deployments.engine.tiny import save_tiny_checkpoint

SIZES = (2, 4)


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return EngineConfig(device="cpu", max_rows=4, padded_sizes=SIZES, threads=1, cache_dir=str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> list[ModelSpec]:
    other = save_tiny_checkpoint(tmp_path_factory.mktemp("cold_start") / "other", seed=50)
    return [ModelSpec("one", str(tiny_checkpoint)), ModelSpec("two", str(other))]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the calls that starts have timed."""
    sizes: list[int] = []
    run_calls = warm_up._run_calls

    def count(engine: Engine, model: LoadedModel, size: int) -> None:
        sizes.append(size)
        run_calls(engine, model, size)

    monkeypatch.setattr(warm_up, "_run_calls", count)
    return sizes


@pytest.fixture
def start(config: EngineConfig) -> Iterator[Callable[..., EngineWorker]]:
    """Starts workers, and stops them in the end."""
    started: list[EngineWorker] = []

    def start(specs: list[ModelSpec], config: EngineConfig = config, **more: Any) -> EngineWorker:
        started.append(EngineWorker.load(specs, config, **more))
        return started[-1]

    yield start
    for worker in started:
        worker.stop()


def kept_file(config: EngineConfig) -> Path:
    (path,) = (Path(str(config.cache_dir)) / KIND).iterdir()
    return path


def change(path: Path, edit: Callable[[Any], object]) -> None:
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


def ask(model: LoadedModel, name: str, **asked: Any) -> Request:
    request = request_for(model, name, num_inference_steps=3, **asked)
    return replace(request, params=request.params.model_copy(update={"model_name": name}))


async def answer(worker: EngineWorker, request: Request) -> list[Event]:
    async with asyncio.timeout(20):
        return [event async for event in worker.generate(request)]


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def knees(worker: EngineWorker) -> dict[str, int]:
    return dict(worker.report().knees)


def test_a_second_start_measures_nothing_and_knows_the_same(
    start: Callable[..., EngineWorker], specs: list[ModelSpec], timed: list[int]
) -> None:
    first = start(specs[:1])
    assert set(timed) == set(SIZES)
    assert {call.kind for call in first.report().calls} == {"denoise", "decode"}
    first.stop()
    timed.clear()
    second = start(specs[:1])
    assert timed == []
    assert knees(second) == knees(first)
    assert second.report().calls == first.report().calls


def test_models_of_one_architecture_share_what_was_measured(
    start: Callable[..., EngineWorker], specs: list[ModelSpec], timed: list[int], config: EngineConfig
) -> None:
    start(specs[:1])
    timed.clear()
    start(specs[1:])
    assert timed == []
    assert kept_file(config)


def test_the_knee_after_a_start_is_the_kept_one_whatever_calls_cost_now(
    start: Callable[..., EngineWorker], specs: list[ModelSpec], config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(specs[:1]).stop()

    def pin(found: Any) -> None:
        for knee in found["content"]["costs"]["knees"]:
            knee["rows"] = 2
        for call in found["content"]["costs"]["calls"]:
            call["seconds"] = [0.5, 0.5, 0.5]

    change(kept_file(config), pin)
    beside_a_busy_replica = start(specs[:1])
    assert knees(beside_a_busy_replica) == {"one": 2}
    assert {call.seconds for call in beside_a_busy_replica.report().calls if call.seconds} == {0.5}


@pytest.mark.parametrize(
    "edit",
    [
        lambda found: found["conditions"]["machine"].update(processor="another"),
        lambda found: found["conditions"]["versions"].update(torch="0.1"),
        lambda found: found["content"]["costs"]["knees"][0].update(rows=0),
        lambda found: found["content"]["costs"]["knees"][0].update(rows=3),
        lambda found: found["content"]["costs"]["knees"].clear(),
        lambda found: found["content"]["costs"]["calls"][0].update(seconds=[-1.0]),
        lambda found: found.clear(),
    ],
    ids=["machine", "versions", "impossible", "no such size", "no knee", "negative", "empty"],
)
def test_what_cannot_be_trusted_is_measured_again(
    edit: Callable[[Any], object],
    start: Callable[..., EngineWorker],
    specs: list[ModelSpec],
    config: EngineConfig,
    timed: list[int],
) -> None:
    start(specs[:1]).stop()
    path = kept_file(config)
    change(path, edit)
    timed.clear()
    again = start(specs[:1])
    assert set(timed) == set(SIZES)
    assert knees(again)["one"] in SIZES


@pytest.mark.parametrize("changed", [{"max_rows": 8, "padded_sizes": (2, 8)}, {"dtype": "bfloat16"}])
def test_other_settings_are_measured_anew(
    changed: dict[str, Any],
    start: Callable[..., EngineWorker],
    specs: list[ModelSpec],
    config: EngineConfig,
    timed: list[int],
) -> None:
    start(specs[:1]).stop()
    timed.clear()
    start(specs[:1], replace(config, **changed))
    assert timed


def test_without_a_folder_every_start_measures(
    start: Callable[..., EngineWorker], specs: list[ModelSpec], config: EngineConfig, timed: list[int], tmp_path: Path
) -> None:
    for _ in range(2):
        timed.clear()
        start(specs[:1], replace(config, cache_dir=None)).stop()
        assert timed
    assert list(tmp_path.iterdir()) == []


async def test_what_is_measured_while_serving_is_kept_when_the_engine_stops(
    start: Callable[..., EngineWorker], specs: list[ModelSpec], config: EngineConfig, tiny_model: LoadedModel
) -> None:
    worker = await asyncio.to_thread(start, specs[:1])
    before = kept_file(config).read_text()
    await answer(worker, ask(tiny_model, "one"))
    await asyncio.to_thread(worker.stop)
    assert kept_file(config).read_text() != before


@pytest.fixture
async def program(start: Callable[..., EngineWorker], specs: list[ModelSpec]) -> EngineWorker:
    """An engine in a program, which has asked for `two`."""
    return await asyncio.to_thread(start, specs, first="two")


async def test_a_program_loads_what_it_asks_for_and_its_pictures_are_right(
    program: EngineWorker, specs: list[ModelSpec], tiny_model: LoadedModel
) -> None:
    assert program.report().loaded_models == ("two",)
    events = await answer(program, ask(tiny_model, "one"))
    assert isinstance(events[-1], Finished)
    assert set(program.report().loaded_models) == {"one", "two"}
    (image,) = [event for event in events if isinstance(event, ImageDone)]
    tape, _ = run(tiny_model, [ask(tiny_model, tiny_model.spec.name, prompt="a picture of one")])
    # The program's networks run through OpenVINO, the others on torch.
    assert difference(pixels_of(image.data), tape.images(tiny_model.spec.name)[0]) <= 1


async def test_what_a_program_has_loaded_is_measured_when_nothing_runs_and_is_counted_nowhere(
    program: EngineWorker, timed: list[int], monkeypatch: pytest.MonkeyPatch, tiny_model: LoadedModel
) -> None:
    assert timed == []
    await answer(program, ask(tiny_model, "two"))
    before = program.report().models["two"].counters
    assert program._engine is not None
    costs = program._engine.admission.costs
    native = Bucket("two", *program._engine.models["two"].spec.native)
    await until(lambda: costs.has_knee(native))
    assert set(timed) <= set(SIZES)
    after = program.report().models["two"].counters
    assert after == before
    assert isinstance((await answer(program, ask(tiny_model, "two")))[-1], Finished)


async def test_samplers_are_checked_once_for_all_starts_and_refused_with_the_same_words(
    start: Callable[..., EngineWorker],
    tiny_model: LoadedModel,
    tmp_path: Path,
    config: EngineConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clipping = save_tiny_checkpoint(tmp_path / "clipping")
    change(clipping / "scheduler" / "scheduler_config.json", lambda found: found.update(thresholding=True))
    spec = ModelSpec("clips", str(clipping), default_sampler="euler")
    found: list[str] = []
    check = DiffusionSchedulerFactory._find_refusal

    def count(factory: DiffusionSchedulerFactory, sampler: str) -> Any:
        found.append(sampler)
        return check(factory, sampler)

    monkeypatch.setattr(DiffusionSchedulerFactory, "_find_refusal", count)
    refusals = []
    for _ in range(2):
        worker = await asyncio.to_thread(start, [spec])
        refused = (await answer(worker, ask(tiny_model, "clips", sampler="ddim")))[-1]
        assert isinstance(refused, Failed)
        refusals.append(refused.error.message)
        await asyncio.to_thread(worker.stop)
    assert refusals[0] == refusals[1]
    assert "thresholding" in refusals[0]
    assert found.count("ddim") == found.count("euler") == 1


async def test_schedules_in_demand_are_compiled_beside_the_engine_before_anybody_asks(
    start: Callable[..., EngineWorker], specs: list[ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: dict[int, str] = {}
    compile_one = background._compile_schedule

    def record(model: LoadedModel, steps: int) -> None:
        compile_one(model, steps)
        compiled[steps] = threading.current_thread().name

    monkeypatch.setattr(background, "_compile_schedule", record)
    await asyncio.to_thread(start, specs, first="two")
    await until(lambda: len(compiled) == len(background.COMMON_STEPS))
    assert compiled == dict.fromkeys(background.COMMON_STEPS, "background")

"""Many requests as one: side by side but not all at once, equal ones once, each to an end of its own."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.protocol.errors import (
    Cancelled,
    DeadlineExceeded,
    NumericalFailure,
    Overloaded,
)
from deployments.engine.protocol.events import Accepted, Failed, Finished, Progress
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from serve_app.generation.result import Result, decode_image
from serve_app.jobs import batch as batches
from serve_app.jobs.batch import Batch, Outcome
from serve_app.service import DiffusionService
from tests.serve_app.fakes import TIMINGS, FakeBackend, Step, image, slow, success, until
from tests.serve_app.virtual_time import in_virtual_time


def entries(*prompts: str, **asked: Any) -> dict[int, GenerationParams]:
    return {i: GenerationParams.model_validate({"prompt": prompt, **asked}) for i, prompt in enumerate(prompts)}


def batch_of(service: DiffusionService, params: dict[int, GenerationParams], in_flight: int = 32, **more: Any) -> Batch:
    return Batch(service, params, name="b", in_flight=in_flight, **more)


async def outcomes_of(batch: Batch) -> dict[int, Outcome]:
    async with aclosing(batch.outcomes()) as outcomes:
        return {index: outcome async for index, outcome in outcomes}


async def timed(service: DiffusionService, params: dict[int, GenerationParams]) -> tuple[dict[int, Outcome], float]:
    """With the seconds that it took by the loop's clock."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    return await outcomes_of(batch_of(service, params, clock=clock)), clock() - begun


def seeds(outcome: Outcome) -> list[int]:
    assert isinstance(outcome, Result), outcome
    return [image.seed for image in outcome.images]


async def test_each_entry_has_its_own_end(service: DiffusionService, backend: FakeBackend) -> None:
    def script(request: Request) -> Sequence[Step]:
        if request.params.prompt == "bad":
            return [Failed(request.id, NumericalFailure("not finite"))]
        if request.params.prompt == "bug":
            return [ZeroDivisionError()]
        return success(request)

    backend.script = script
    params = entries("a", "bad", "bug", "c", seed=1) | {7: GenerationParams(prompt="x", model_name="no such model")}
    outcomes = await outcomes_of(batch_of(service, params))
    assert sorted(outcomes) == [0, 1, 2, 3, 7]
    assert seeds(outcomes[0]) == seeds(outcomes[3]) == [1]
    codes = [outcomes[i].code for i in (1, 2, 7)]  # type: ignore[union-attr]
    assert codes == ["numerical_failure", "internal_error", "model_not_found"]
    assert [request.name for request in backend.asked] == ["b:0", "b:1", "b:2", "b:3"]


async def test_no_more_than_the_bound_run_at_a_time_and_all_of_them_do(
    service: DiffusionService, backend: FakeBackend
) -> None:
    backend.script = lambda request: [Accepted(request.id, 0), 0.002, *success(request)[1:]]
    outcomes = await outcomes_of(batch_of(service, entries(*(str(i) for i in range(40))), in_flight=8))
    assert len(outcomes) == 40
    assert backend.most_running == 8


async def test_equal_entries_are_made_once(service: DiffusionService, backend: FakeBackend) -> None:
    same = {"prompt": "a cup", "seed": 1}
    asked = [same, same | {"model_name": "maker/tiny"}, same | {"seed": 2}, same | {"priority": "low"}, same]
    params = {i: GenerationParams.model_validate(each) for i, each in enumerate(asked)}
    outcomes = await outcomes_of(batch_of(service, params))
    assert [seeds(outcomes[i]) for i in range(5)] == [[1], [1], [2], [1], [1]]
    # The second has the default model's alias; the fourth may come later, and must not make the others late.
    assert len(backend.asked) == 3


async def test_entries_without_a_seed_are_never_equal(service: DiffusionService, backend: FakeBackend) -> None:
    await outcomes_of(batch_of(service, entries("a cup", "a cup")))
    assert len({request.params.seed for request in backend.asked}) == 2


def test_a_full_engine_is_asked_again_when_it_says(service: DiffusionService, backend: FakeBackend) -> None:
    refused: list[str] = []

    def script(request: Request) -> Sequence[Step]:
        if refused.count(request.name) < 3:
            refused.append(request.name)
            return [Failed(request.id, Overloaded("full", 7.0))]
        return success(request)

    backend.script = script
    outcomes, took = in_virtual_time(timed(service, entries("a", "b", seed=1)))
    assert [seeds(outcomes[i]) for i in (0, 1)] == [[1], [1]]
    assert len(refused) == 6
    assert 21 <= took <= 21 * (1 + batches.JITTER)


def test_an_entry_counts_once_by_its_end_however_often_it_asks(service: DiffusionService, backend: FakeBackend) -> None:
    def script(request: Request) -> Sequence[Step]:
        asked = [each.name for each in backend.asked].count(request.name)
        full = request.params.prompt == "late" or asked < 10
        return [Failed(request.id, Overloaded("full", 1.0))] if full else success(request)

    backend.script = script
    params = entries(*"abcdefgh", seed=1) | {8: GenerationParams(prompt="late", deadline_ms=5_000)}
    outcomes, _ = in_virtual_time(timed(service, params))
    assert sum(isinstance(outcome, Result) for outcome in outcomes.values()) == 8
    assert len(backend.asked) > 80
    counted = in_virtual_time(service.get_generation_stats())
    assert (counted["requests"], counted["finished"], counted["active"]) == (9, 8, 0)
    assert counted["refusals"] == {"deadline_exceeded": 1}


def test_patience_ends_where_the_deadline_would_pass(service: DiffusionService, backend: FakeBackend) -> None:
    backend.script = lambda request: [Failed(request.id, Overloaded("full", 2.0))]
    outcomes, took = in_virtual_time(timed(service, entries("a", deadline_ms=9_000)))
    assert isinstance(outcomes[0], DeadlineExceeded)
    assert 4 <= took <= 9
    left = [request.params.deadline_ms or 0 for request in backend.asked]
    assert left[0] == 9_000
    assert left == sorted(left, reverse=True)
    assert left[-1] <= 7_000


async def test_deadlines_count_from_the_batchs_beginning(service: DiffusionService, backend: FakeBackend) -> None:
    outcomes = await outcomes_of(batch_of(service, entries("a", deadline_ms=9_000), age_s=10))
    assert isinstance(outcomes[0], DeadlineExceeded)
    assert not backend.asked


async def test_leaving_cancels_all_that_is_not_done(service: DiffusionService, backend: FakeBackend) -> None:
    backend.script = lambda request: success(request) if request.params.prompt == "quick" else slow(request)
    outcomes = batch_of(service, entries("quick", *(str(i) for i in range(9))), in_flight=4).outcomes()
    assert (await anext(outcomes))[0] == 0
    await until(lambda: backend.running == 4)
    await outcomes.aclose()
    assert backend.running == 0
    assert len(backend.cancelled) == 4
    assert len(backend.asked) == 5


async def test_cancelled_by_its_name_nothing_more_is_begun(service: DiffusionService, backend: FakeBackend) -> None:
    def script(request: Request) -> Sequence[Step]:
        return [Failed(request.id, Overloaded("full", 60.0))] if request.name == "b:0" else slow(request)

    backend.script = script
    running = asyncio.ensure_future(outcomes_of(batch_of(service, entries("a", "b", "c", "d"), in_flight=3)))
    await until(lambda: backend.running == 2)
    assert not await service.cancel("b", "a stranger")
    assert await service.cancel("b")
    outcomes = await running
    assert [type(outcome) for outcome in outcomes.values()] == [Cancelled] * 4
    assert (backend.running, len(backend.asked)) == (0, 3)


async def test_one_entry_can_be_cancelled(service: DiffusionService, backend: FakeBackend) -> None:
    backend.script = lambda request: slow(request) if request.name == "b:1" else success(request)
    running = asyncio.ensure_future(outcomes_of(batch_of(service, entries("a", "b"))))
    await until(lambda: backend.running == 1)
    assert await service.cancel("b:1")
    outcomes = await running
    assert isinstance(outcomes[0], Result)
    assert isinstance(outcomes[1], Cancelled)


async def test_progress_is_the_share_of_steps(service: DiffusionService, backend: FakeBackend) -> None:
    def script(request: Request) -> Sequence[Step]:
        halfway: list[Step] = [Accepted(request.id, 0), Progress(request.id, 5, 10), 0.05]
        return [*halfway, image(request, 0), Finished(request.id, TIMINGS)] if request.name == "b:0" else slow(request)

    backend.script = script
    batch = batch_of(service, entries("a", "b"))
    assert batch.progress == 0
    outcomes = batch.outcomes()
    await anext(outcomes)
    assert batch.progress == pytest.approx((1 + 1 / 50) / 2)
    await outcomes.aclose()


@pytest.fixture
async def tiny(tmp_path: Path) -> AsyncIterator[DiffusionService]:
    from tests.deployments.engine.tiny import save_tiny_checkpoint

    spec = ModelSpec("tiny", str(save_tiny_checkpoint(tmp_path / "tiny")))
    async with DiffusionService(models=[spec], device="cpu", threads=1) as service:
        await service.generate(GenerationParams(prompt="warm", num_inference_steps=1))
        yield service


async def test_entries_share_unet_calls_and_are_the_pictures_that_they_are_alone(tiny: DiffusionService) -> None:
    async def calls() -> int:
        made: int = (await tiny.get_generation_stats())["unet_calls"]
        return made

    params = entries(*(f"a cup {i}" for i in range(6)), seed=3, num_inference_steps=10)
    before = await calls()
    outcomes = await outcomes_of(batch_of(tiny, params))
    together, alone = await calls() - before, {}
    for index, each in params.items():
        alone[index] = await tiny.generate(each)
    assert together <= (await calls() - before - together) / 2
    for index, result in alone.items():
        outcome = outcomes[index]
        assert isinstance(outcome, Result)
        pictures = [decode_image(made.images[0]).tobytes() for made in (outcome, result)]
        assert max(abs(a - b) for a, b in zip(*pictures, strict=True)) <= 1


@pytest.mark.parametrize(("said", "begun"), [("b", 1), ("b:0", 5)])
async def test_a_batch_that_is_ended_through_another_process_begins_nothing_more(
    service: DiffusionService, backend: FakeBackend, said: str, begun: int
) -> None:
    """That process knows of those entries only that are in an engine."""
    first = iter([True])
    backend.script = lambda request: (
        [Accepted(request.id, 0), Failed(request.id, Cancelled(name=said))] if next(first, False) else success(request)
    )
    outcomes = await outcomes_of(batch_of(service, entries(*"abcde", seed=1), in_flight=1))
    assert isinstance(outcomes[0], Cancelled)
    assert len(backend.asked) == begun
    assert [isinstance(outcome, Result) for outcome in outcomes.values()] == [False, *[begun > 1] * 4]

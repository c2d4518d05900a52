"""Requests are counted once and by their ends, whatever was tried for them."""

from collections.abc import AsyncGenerator, Mapping

import pytest

from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.events import Event, Failed, Finished
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from deployments.metrics import DURATION, REQUESTS
from serve_app.backends.counting import CountingBackend
from serve_app.observability.request_stats import Statistics
from tests.serve_app.fakes import TIMINGS, FakeBackend


async def test_waiting_for_a_place_is_no_refusal_and_no_part_of_the_duration() -> None:
    now, refusals = 0.0, 3
    statistics = Statistics(lambda: now)
    backend = FakeBackend()

    def script(request: Request) -> list[Event]:
        return [Failed("r1", Overloaded("full"))] if len(backend.asked) <= refusals else [Finished("r1", TIMINGS)]

    async def wait(request: Request, full: Overloaded) -> Request:
        nonlocal now
        now += 100.0
        return request

    async def read(events: AsyncGenerator[Event, None]) -> list[Event]:
        nonlocal now
        seen = []
        async for event in events:
            now += 2.0
            seen.append(event)
        return seen

    backend.script = script
    request = Request("r1", GenerationParams(prompt="a cup", seed=1, model_name="tiny", width=64, height=64))
    assert await read(CountingBackend(backend, statistics).generate(request, wait)) == [Finished("r1", TIMINGS)]
    samples = list(statistics.samples())
    assert [(each.values, each.now) for each in samples if each.metric is REQUESTS] == [(("tiny", "finished", ""), 1)]
    (took,) = [each.now for each in samples if each.metric is DURATION]
    assert isinstance(took, Mapping)
    assert [*took] == pytest.approx([2.0], rel=0.03)

"""Every request ends with exactly one outcome, in every count."""

from collections.abc import AsyncGenerator, Mapping, Sequence

import pytest

from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, Timings
from deployments.metrics import DURATION, INFLIGHT, REQUESTS, Sample
from serve_app.observability.request_stats import Statistics


async def stream(events: Sequence[Event]) -> AsyncGenerator[Event, None]:
    for event in events:
        yield event


async def test_a_request_that_just_ends_is_broken_and_not_cancelled() -> None:
    statistics = Statistics()
    assert [event async for event in statistics.watch("tiny", stream([Accepted("r1", 0)]))] == [Accepted("r1", 0)]
    counted = statistics.snapshot()
    assert (counted["broken"], counted["cancelled"], counted["active"]) == (1, 0, 0)


async def test_prometheus_is_told_the_same_by_model_and_reason() -> None:
    now = 0.0
    statistics = Statistics(lambda: now)
    for model, last in (
        ("tiny", Finished("r1", Timings())),
        ("tiny", Failed("r2", Overloaded("full"))),
        ("other", Failed("r3", Overloaded("full"))),
    ):
        async for _ in statistics.watch(model, stream([last])):
            now += 2.0
    running = statistics.watch("tiny", stream([Accepted("r4", 0), Finished("r4", Timings())]))
    await anext(running)
    samples = list(statistics.samples())
    assert Sample(REQUESTS, ("tiny", "finished", ""), 1) in samples
    assert Sample(REQUESTS, ("tiny", "refused", "overloaded"), 1) in samples
    assert Sample(REQUESTS, ("other", "refused", "overloaded"), 1) in samples
    assert Sample(INFLIGHT, (), 1) in samples
    (took,) = [sample.now for sample in samples if sample.metric is DURATION]
    assert isinstance(took, Mapping)
    assert [*took] == pytest.approx([2.0], rel=0.03)
    assert statistics.snapshot()["refusals"] == {"overloaded": 2}
    assert statistics.snapshot()["latency_ms"]["1m"]["count"] == 1
    await running.aclose()

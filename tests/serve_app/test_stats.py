"""Latencies of the last minutes."""

from collections.abc import AsyncGenerator

from deployments.engine.events import Accepted, Event
from serve_app.stats import WINDOW_SECONDS, Latencies, Statistics, percentile


def test_percentiles_are_nearest_rank() -> None:
    hundred = [float(n) for n in range(1, 101)]
    assert [percentile(hundred, percent) for percent in (50, 95, 99)] == [50, 95, 99]
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7
    assert percentile([], 50) == 0


def test_only_the_last_minutes_count() -> None:
    now = 0.0
    latencies = Latencies(lambda: now)
    latencies.add(1000)
    now = WINDOW_SECONDS + 1
    latencies.add(10)
    assert latencies.snapshot() == {"count": 1, "p50": 10, "p95": 10, "p99": 10, "window_seconds": WINDOW_SECONDS}


async def test_a_request_that_just_ends_is_broken_and_not_cancelled() -> None:
    async def accepted_and_no_more() -> AsyncGenerator[Event, None]:
        yield Accepted("r1", 0)

    statistics = Statistics()
    assert [event async for event in statistics.watch(accepted_and_no_more())] == [Accepted("r1", 0)]
    counted = statistics.snapshot()
    assert (counted["broken"], counted["cancelled"], counted["active"]) == (1, 0, 0)

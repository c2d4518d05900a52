"""The HTTP bench: which targets it calls missed, and how many requests it sends at once."""

import asyncio
from typing import Any

import pytest

from bench.http.__main__ import PARTS, config_of, misses
from bench.http.measurements import run_concurrently

FINE: dict[str, Any] = {
    "overhead": {"p50_ms": 24.9},
    "surfaces": {"openai_more_ms": 4.9, "a1111_more_ms": 4.9, "huggingface_more_ms": -1.0},
    "hits": {"times_faster": 20.0},
    "identical": {"pictures_made": 1, "different_answers": 1},
    "memory": {"slope_bytes_per_request": -3.0},
}


@pytest.mark.parametrize(
    ("part", "figure", "value"),
    [
        ("overhead", "p50_ms", 25.1),
        ("surfaces", "openai_more_ms", 5.1),
        ("surfaces", "a1111_more_ms", 5.1),
        ("surfaces", "huggingface_more_ms", 5.1),
        ("hits", "times_faster", 19.9),
        ("identical", "pictures_made", 2),
        ("identical", "pictures_made", 0),
        ("identical", "different_answers", 2),
        ("memory", "slope_bytes_per_request", 1001.0),
    ],
)
def test_each_target_can_be_missed(part: str, figure: str, value: float) -> None:
    assert misses(FINE) == []
    assert len(misses(FINE | {part: FINE[part] | {figure: value}})) == 1


def test_parts_that_were_not_measured_are_not_missed() -> None:
    assert misses({}) == []
    assert set(FINE) == set(PARTS)


async def test_no_more_are_asked_at_once_than_there_are_callers() -> None:
    running = most = 0

    async def one() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return 1

    assert await run_concurrently(3, [one] * 10) == [1] * 10
    assert most == 3


def test_with_redis_results_are_there_and_nowhere_else() -> None:
    config = config_of("redis://127.0.0.1:1")
    assert config.redis is not None
    assert config.cache.memory_bytes == 0

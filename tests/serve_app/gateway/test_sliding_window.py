"""Sliding windows: never above the limit, and exact about when there is room again; in memory, and through Redis."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.redis_server import redis_server
from serve_app.gateway import sliding_window as windows_module
from serve_app.gateway.sliding_window import WINDOW_S, SlidingWindows, WindowCounters
from serve_app.store.redis import RedisTier
from tests.serve_app.redis_servers import redis_at


class Clock:
    """Stands still until it is moved. Begins at a full minute."""

    def __init__(self) -> None:
        self.now = 1_000_000 * WINDOW_S * 1.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as server:
        yield server.url


def fail() -> None:
    pytest.fail("Redis was there")


def alone(clock: Clock) -> SlidingWindows:
    return SlidingWindows(None, fail, clock)


async def taken(windows: SlidingWindows, times: int, limit: int = 10, name: str = "a") -> int:
    """How many of so many, one by one, are let in."""
    return sum([(await windows.take(name, 1, limit)).taken for _ in range(times)])


async def test_no_more_than_the_limit_and_more_with_time(clock: Clock) -> None:
    windows = alone(clock)
    assert await taken(windows, 15) == 10
    clock.now += 59.9
    assert await taken(windows, 15) == 0
    clock.now += 0.1 + WINDOW_S / 2
    assert await taken(windows, 15) == 5
    clock.now += 3 * WINDOW_S
    assert await taken(windows, 15) == 10


async def test_around_the_full_minute_nobody_gets_twice_the_limit(clock: Clock) -> None:
    windows = alone(clock)
    clock.now += 59
    assert await taken(windows, 10) == 10
    clock.now += 2
    assert await taken(windows, 10) == 0


async def test_one_caller_takes_nothing_from_another(clock: Clock) -> None:
    windows = alone(clock)
    assert await taken(windows, 10, name="a") == 10
    assert await taken(windows, 10, name="b") == 10


async def test_what_was_refused_was_not_taken(clock: Clock) -> None:
    windows = alone(clock)
    assert (await windows.take("a", 8, 10)).left == 2
    refused = await windows.take("a", 5, 10)
    assert (refused.taken, refused.left) == (False, 2)
    assert (await windows.take("a", 2, 10)).taken


@given(
    before=st.integers(0, 1000),
    now=st.integers(0, 1000),
    share=st.floats(0, 0.999),
    amount=st.integers(1, 1000),
    spare=st.integers(0, 100),
)
def test_the_wait_that_is_told_is_the_shortest_that_helps(
    before: int, now: int, share: float, amount: int, spare: int
) -> None:
    limit = amount + spare
    wait = WindowCounters(before, now, share).seconds_until(amount, limit)

    def fits(after: float) -> bool:
        passed = share + after / WINDOW_S
        later = [WindowCounters(before, now, passed), WindowCounters(now, 0, passed - 1), WindowCounters(0, 0, 0)][
            min(int(passed), 2)
        ]
        return later.usage() + amount <= limit

    assert 0 <= wait <= 2 * WINDOW_S
    assert fits(wait + 1e-6)
    assert wait < 1e-3 or not fits(wait - 1e-3)


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(st.tuples(st.floats(0, 50), st.integers(1, 12)), min_size=1, max_size=30))
def test_redis_decides_as_memory_does(redis_url: str, steps: list[tuple[float, int]]) -> None:
    async def compare() -> None:
        clock = Clock()
        tier = RedisTier(redis_at(redis_url, timeout_ms=5000))
        await tier.call(lambda redis: redis.flushall())
        shared, local = SlidingWindows(tier, fail, clock), alone(clock)
        for seconds, amount in steps:
            clock.now += seconds
            assert await shared.take("a", amount, 12) == await local.take("a", amount, 12)
        await tier.close()

    asyncio.run(compare())


async def test_processes_share_what_is_used(clock: Clock, redis_url: str) -> None:
    tiers = [RedisTier(redis_at(redis_url, timeout_ms=5000)) for _ in range(2)]
    first, second = (SlidingWindows(tier, fail, clock) for tier in tiers)
    let_in = await asyncio.gather(*(taken(windows, 8, name="both") for windows in (first, second)))
    assert sum(let_in) == 10
    for tier in tiers:
        await tier.close()


async def test_what_redis_holds_ends_by_itself(clock: Clock, redis_url: str) -> None:
    tier = RedisTier(redis_at(redis_url, timeout_ms=5000, prefix="ends:"))
    await taken(SlidingWindows(tier, fail, clock), 1)
    names = await tier.call(lambda redis: redis.keys("ends:*"))
    assert len(names) == 1
    assert 0 < await tier.call(lambda redis: redis.ttl(names[0])) <= 2 * WINDOW_S
    await tier.close()


async def test_without_redis_the_limits_go_on_from_what_was_known(clock: Clock) -> None:
    lost: list[None] = []
    with redis_server() as server:
        tier = RedisTier(redis_at(server.url))
        other = RedisTier(redis_at(server.url, timeout_ms=5000))
        windows = SlidingWindows(tier, lambda: lost.append(None), clock)
        assert await taken(SlidingWindows(other, fail, clock), 6) == 6
        assert await taken(windows, 1) == 1
        await other.close()
        server.stop()
        assert await taken(windows, 10) == 3
    assert len(lost) == 10
    await tier.close()


async def test_who_was_not_seen_for_longest_is_forgotten_first(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "MAX_NAMES", 2)
    windows = alone(clock)
    for name in ("a", "b", "a", "c"):
        await taken(windows, 10, name=name)
    assert await taken(windows, 1, name="a") == 0
    assert await taken(windows, 1, name="b") == 1

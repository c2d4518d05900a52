"""Redis may be down, silent, slow, full or locked: a call is over in time, and after some failures none is made."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from bench.redis_server import RedisServer, redis_server
from serve_app.config.errors import ConfigError
from serve_app.config.secret import Secret
from serve_app.config.sections import RedisConfig
from serve_app.store.redis import FAILURES, PAUSE_S, RedisGone, RedisTier
from tests.serve_app.fakes import until
from tests.serve_app.redis_servers import Mode, Wire, redis_at, wire_to

# Longer than the default: a call that should succeed must, on a machine that is busy with other things as well.
TIMEOUT_S = 0.25

# Beside the time-out, for a machine that is busy with other things.
MARGIN_S = 0.25


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time_() -> Time:
    return Time()


@pytest.fixture
async def wire(server: RedisServer) -> AsyncIterator[Wire]:
    async with wire_to(server) as wire:
        yield wire


@contextlib.asynccontextmanager
async def tier_at(url: str, time_: Time | None = None, **options: Any) -> AsyncIterator[RedisTier]:
    tier = RedisTier(redis_at(url, **{"timeout_ms": 1000 * TIMEOUT_S} | options), *([time_] if time_ else []))
    yield tier
    await tier.close()


def ping(redis: Redis) -> Awaitable[Any]:
    return redis.ping()


async def fails(tier: RedisTier, do: Any = ping) -> float:
    """The seconds that the failure takes."""
    begun = time.monotonic()
    with pytest.raises(RedisGone):
        async with asyncio.timeout(5):
            await tier.call(do)
    return time.monotonic() - begun


async def test_a_call_gives_what_redis_says(server: RedisServer) -> None:
    async with tier_at(server.url) as tier:
        await tier.call(lambda redis: redis.set("a", b"\x00\xff"))
        assert await tier.call(lambda redis: redis.get("a")) == b"\x00\xff"
        assert (tier.well, tier.failures, tier.skipped) == (True, 0, 0)


@pytest.mark.parametrize("mode", ["refuse", "silent", "slow", "cut"])
@pytest.mark.parametrize("connected", [False, True])
async def test_a_failing_redis_costs_the_time_out_at_most_and_then_nothing(
    wire: Wire, mode: Mode, connected: bool, time_: Time
) -> None:
    async with tier_at(wire.url, time_) as tier:
        if connected:
            await tier.call(ping)
        await wire.turn(mode, delay_s=4 * TIMEOUT_S)
        for number in range(1, FAILURES + 1):
            assert tier.well
            assert await fails(tier) < TIMEOUT_S + MARGIN_S
            assert tier.failures == number
        assert not tier.well
        opened = wire.opened
        for _ in range(1000):
            await fails(tier)
        assert (tier.failures, tier.skipped, wire.opened) == (FAILURES, 1000, opened)


async def test_an_answer_that_is_late_but_in_time_is_no_failure(wire: Wire) -> None:
    async with tier_at(wire.url, timeout_ms=2000) as tier:
        await wire.turn("slow", delay_s=0.05)
        await tier.call(ping)
        assert tier.failures == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--maxmemory", "100kb", "--maxmemory-policy", "noeviction"),
        ("--min-replicas-to-write", "1"),
        ("--replicaof", "127.0.0.1 1"),
    ],
    ids=["full", "too few replicas", "read-only"],
)
async def test_a_redis_that_takes_nothing_still_gives(options: tuple[str, ...]) -> None:
    with redis_server(*options) as server:
        async with tier_at(server.url) as tier:
            for _ in range(FAILURES + 1):
                assert await fails(tier, lambda redis: redis.set("a", "b")) < TIMEOUT_S + MARGIN_S
                assert await tier.call(lambda redis: redis.get("a")) is None
            assert tier.well
            assert tier.failures == FAILURES + 1


async def test_what_redis_will_not_do_is_a_failure(server: RedisServer) -> None:
    async with tier_at(server.url) as tier:
        await tier.call(lambda redis: redis.rpush("a list", "b"))
        await fails(tier, lambda redis: redis.get("a list"))
        assert tier.failures == 1


async def test_a_locked_redis_wants_the_password_from_the_place_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    monkeypatch.setenv("WRONG", "sesame")
    monkeypatch.delenv("NOWHERE", raising=False)
    with redis_server("--requirepass", "open sesame") as server:
        async with tier_at(server.url, password=Secret(file=tmp_path / "password")) as tier:
            await tier.call(ping)
        for wrong in (None, Secret(env="WRONG")):
            async with tier_at(server.url, password=wrong) as tier:
                assert await fails(tier) < TIMEOUT_S + MARGIN_S
    with pytest.raises(ConfigError, match="redis: password: the environment variable NOWHERE"):
        RedisTier(redis_at("redis://nowhere", password=Secret(env="NOWHERE")))


def test_a_key_that_is_missing_or_short_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "0123456789")
    for place, words in (
        (Secret(env="SHORT"), "SHORT must hold at least 32"),
        (Secret(file=tmp_path / "no"), "no cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            RedisTier(RedisConfig(url="redis://nowhere", key=place))


def test_a_key_is_for_one_purpose(server: RedisServer) -> None:
    one, other = RedisTier(redis_at(server.url)), RedisTier(redis_at(server.url))
    assert one.signing_key("results") == other.signing_key("results")
    assert one.signing_key("results") != one.signing_key("answers")


async def test_after_the_pause_one_call_tries_and_the_others_wait_for_what_it_finds(wire: Wire, time_: Time) -> None:
    async with tier_at(wire.url, time_) as tier:
        await wire.turn("silent")
        for _ in range(FAILURES):
            await fails(tier)
        for still in (0.0, PAUSE_S - 0.1):
            time_.now = still
            await fails(tier)
        assert tier.skipped == 2
        time_.now = PAUSE_S
        await asyncio.gather(*(fails(tier) for _ in range(10)))
        assert (tier.failures, tier.skipped) == (FAILURES + 1, 2 + 9)
        await wire.turn("pass")
        await fails(tier)
        time_.now = 2 * PAUSE_S
        await tier.call(ping)
        assert tier.well
        await asyncio.gather(*(tier.call(ping) for _ in range(10)))
        assert tier.failures == FAILURES + 1


async def test_a_probe_whose_caller_leaves_is_the_next_ones(wire: Wire, time_: Time) -> None:
    async with tier_at(wire.url, time_) as tier:
        await wire.turn("silent")
        for _ in range(FAILURES):
            await fails(tier)
        time_.now = PAUSE_S
        probe = asyncio.create_task(tier.call(ping))
        await asyncio.sleep(0)
        probe.cancel()
        await asyncio.wait((probe,))
        await wire.turn("pass")
        await tier.call(ping)
        assert tier.well


async def test_one_success_makes_up_for_the_failures_before_it(wire: Wire) -> None:
    async with tier_at(wire.url) as tier:
        for _ in range(3):
            await wire.turn("cut")
            for _ in range(FAILURES - 1):
                await fails(tier)
            await wire.turn("pass")
            await tier.call(ping)
        assert tier.well
        assert tier.skipped == 0


async def test_a_hundred_at_once_pay_the_time_out_each_and_not_one_after_another(wire: Wire) -> None:
    async with tier_at(wire.url, max_connections=4) as tier:
        await wire.turn("silent")
        took = await asyncio.gather(*(fails(tier) for _ in range(100)))
        assert max(took) < TIMEOUT_S + 2 * MARGIN_S
        assert tier.failures + tier.skipped == 100


async def test_more_callers_than_connections_wait_for_each_other_and_none_fails(server: RedisServer) -> None:
    async with tier_at(server.url, max_connections=2, timeout_ms=5000) as tier:
        assert await asyncio.gather(*(tier.call(ping) for _ in range(100))) == [True] * 100
        assert tier.failures == 0


async def test_connections_that_ended_while_idle_cost_nothing(wire: Wire) -> None:
    async with tier_at(wire.url, timeout_ms=1000) as tier:
        await asyncio.gather(*(tier.call(ping) for _ in range(8)))
        assert wire.opened == 8
        await wire.turn("refuse")
        await wire.turn("pass")
        await asyncio.sleep(0.05)
        await asyncio.gather(*(tier.call(ping) for _ in range(8)))
        assert tier.failures == 0


async def test_connections_that_died_without_a_word_cost_one_failure_and_not_one_each(wire: Wire) -> None:
    async with tier_at(wire.url, timeout_ms=1000) as tier:
        await asyncio.gather(*(tier.call(ping) for _ in range(8)))
        wire.kill_silently()
        await fails(tier)
        for _ in range(8):
            await tier.call(ping)
        assert (tier.failures, tier.skipped) == (1, 0)


async def test_nothing_stays_open(server: RedisServer, wire: Wire) -> None:
    def clients() -> int:
        with contextlib.closing(server.client()) as redis:
            return len(redis.client_list()) - 1

    before = clients()
    async with tier_at(wire.url) as tier:
        await asyncio.gather(*(tier.call(ping) for _ in range(4)))
        await wire.turn("slow", delay_s=4 * TIMEOUT_S)
        await asyncio.gather(*(fails(tier) for _ in range(2)))
        # The idle ones of before, and those that were waiting, have been let go.
        await until(lambda: clients() == before)
        await wire.turn("pass")
        await tier.call(ping)
    await until(lambda: clients() == before)


def test_it_works_on_one_loop_after_another(server: RedisServer) -> None:
    tier = RedisTier(redis_at(server.url, timeout_ms=1000))

    async def once() -> Any:
        try:
            return await tier.call(ping)
        finally:
            await tier.close()

    for _ in range(2):
        assert asyncio.run(once())
    assert tier.failures == 0


async def test_asking_shows_when_it_is_back(wire: Wire, time_: Time) -> None:
    async with tier_at(wire.url, time_) as tier:
        assert await tier.check()
        await wire.turn("refuse")
        assert [await tier.check() for _ in range(FAILURES)] == [True, True, False]
        await wire.turn("pass")
        assert not await tier.check()
        time_.now = PAUSE_S
        assert await tier.check()

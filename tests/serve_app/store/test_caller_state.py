"""What is kept for a caller: every ingress knows it, nobody else does, and what is not ours is not believed."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bench.redis_server import RedisServer
from serve_app.store.caller_state import MAX_ENTRIES, MAX_ENTRY_BYTES, MAX_FILE_BYTES, CallerState
from serve_app.store.redis import RedisTier
from tests.serve_app.redis_servers import redis_at, wire_to
from tests.serve_app.servers import free_port


class Clock:
    """Seconds since 1970 that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def tiers(server: RedisServer) -> AsyncIterator[list[RedisTier]]:
    """Those of two processes."""
    made = [RedisTier(redis_at(server.url, timeout_ms=2000)) for _ in range(2)]
    yield made
    for tier in made:
        await tier.close()


async def values(state: CallerState, caller: str) -> dict[str, object]:
    return {name: entry.value for name, entry in (await state.read(caller)).items()}


async def test_without_redis_this_process_knows_it_for_a_while() -> None:
    clock = Clock()
    state = CallerState("jobs", 30, clock=clock)
    await state.put("one", "a", [1, "x"], b"picture")
    clock.now += 20
    await state.put("one", "b", {"n": None})
    assert await values(state, "one") == {"a": [1, "x"], "b": {"n": None}}
    assert (await state.read("one"))["a"].file == b"picture"
    assert await values(state, "other") == {}
    clock.now += 15
    assert await values(state, "one") == {"b": {"n": None}}
    await state.remove("one", "b")
    await state.remove("nobody", "b")
    assert await values(state, "one") == {}


async def test_a_caller_has_so_many_entries_at_most() -> None:
    state = CallerState("jobs", 30)
    for index in range(MAX_ENTRIES + 10):
        await state.put("one", str(index), index)
    kept = await values(state, "one")
    assert len(kept) == MAX_ENTRIES
    assert list(kept.values())[-1] == MAX_ENTRIES + 9


async def test_in_redis_another_process_knows_it(tiers: list[RedisTier]) -> None:
    here, there = (CallerState("shared", 30, tier) for tier in tiers)
    await here.put("one", "a", [1], b"\x00picture")
    found = await there.read("one")
    assert (found["a"].value, found["a"].file) == ([1], b"\x00picture")
    assert await values(CallerState("other kind", 30, tiers[0]), "one") == {}
    await there.remove("one", "a")
    assert await values(here, "one") == {}


async def test_what_others_wrote_into_redis_is_not_believed(server: RedisServer, tiers: list[RedisTier]) -> None:
    redis = tiers[0]
    state = CallerState("damaged", 30, redis)
    await state.put("one", "a", [1])
    await state.put("two", "a", [2])
    inside = server.client()
    one, two = (state._place(caller) for caller in ("one", "two"))
    # Another caller's entry, moved here; anything at all; what is far too long, which is not even fetched.
    inside.hset(one, "b", inside.hget(two, "a"))
    inside.hset(one, "c", b"\xff\x00")
    inside.hset(one, "d", b"x" * (MAX_ENTRY_BYTES + 1))
    inside.zadd(f"{one}:times", dict.fromkeys("bcd", 4e9))
    assert await values(state, "one") == {"a": [1]}
    assert redis.damaged == 2
    inside.delete(one)
    inside.set(one, "of another type")
    assert await values(state, "one") == {}
    inside.delete(one, f"{one}:times")
    inside.set(f"{one}:times", "of another type")
    assert await values(state, "one") == {}


@pytest.mark.parametrize("which", ["", ":times"])
async def test_what_has_another_type_is_replaced_and_counted(
    server: RedisServer, tiers: list[RedisTier], which: str
) -> None:
    here, there = (CallerState("mended", 30, tier) for tier in tiers)
    inside, place = server.client(), here._place("one")
    for act in (here.put("one", "a", [2]), here.remove("one", "b"), here.read("one")):
        await here.put("one", "a", [1])
        inside.delete(f"{place}{which}")
        inside.set(f"{place}{which}", "of another type")
        await act
        await here.put("one", "a", [3])
        assert await values(there, "one") == {"a": [3]}
    assert tiers[0].damaged == 3
    inside.delete(place)


async def test_what_redis_did_not_take_is_not_hidden_by_what_it_had_before(server: RedisServer) -> None:
    clock = Clock()
    async with wire_to(server) as wire:
        tiers = [RedisTier(redis_at(url, timeout_ms=500)) for url in (wire.url, server.url)]
        here, there = (CallerState("outage", 30, tier, clock) for tier in tiers)
        for name in "abc":
            await here.put("one", name, "before")
        await wire.turn("refuse")
        clock.now += 1
        await here.put("one", "a", "meanwhile")
        await here.put("one", "b", "meanwhile")
        await here.remove("one", "c")
        assert await values(here, "one") == {"a": "meanwhile", "b": "meanwhile"}
        clock.now += 1
        await there.put("one", "b", "later, elsewhere")
        await wire.turn("pass")
        tiers[0]._in_a_row = 0
        now = {"a": "meanwhile", "b": "later, elsewhere"}
        assert await values(here, "one") == now
        assert await values(there, "one") == now
        assert len(here._unsent) == 0
        for tier in tiers:
            await tier.close()


async def test_a_change_whose_caller_left_is_sent_with_the_next_one(server: RedisServer) -> None:
    async with wire_to(server) as wire:
        tier = RedisTier(redis_at(wire.url, timeout_ms=2000))
        state = CallerState("left", 30, tier)
        await state.put("one", "a", 1)
        await wire.turn("slow", delay_s=1.0)
        leaving = asyncio.create_task(state.put("one", "a", 2))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await wire.turn("pass")
        await state.put("one", "b", 3)
        assert await values(state, "one") == {"a": 2, "b": 3}
        await tier.close()


async def test_a_busy_callers_old_entries_do_not_pile_up(server: RedisServer, tiers: list[RedisTier]) -> None:
    clock = Clock()
    state = CallerState("busy", 30, tiers[0], clock)
    for index in range(MAX_ENTRIES + 50):
        await state.put("one", f"old{index}", index)
    found = await values(state, "one")
    assert len(found) == MAX_ENTRIES
    clock.now += 40
    await state.put("one", "new", 1)
    assert await values(state, "one") == {"new": 1}
    assert server.client().hlen(state._place("one")) == 1


async def test_a_file_that_is_too_large_is_left_out_and_its_value_kept() -> None:
    state = CallerState("jobs", 30)
    await state.put("one", "a", [1], b"x" * (MAX_FILE_BYTES + 1))
    entry = (await state.read("one"))["a"]
    assert (entry.value, entry.file) == ([1], b"")


async def test_while_redis_is_gone_this_process_knows_what_went_through_it() -> None:
    redis = RedisTier(redis_at(f"redis://127.0.0.1:{free_port()}/0"))
    state = CallerState("gone", 30, redis)
    await state.put("one", "a", [1])
    assert await values(state, "one") == {"a": [1]}
    await state.remove("one", "a")
    assert await values(state, "one") == {}
    await redis.close()

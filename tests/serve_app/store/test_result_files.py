"""Finished images behind addresses: signed, for a while, from every ingress, and no more than there is room for."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from bench.redis_server import RedisServer
from deployments.engine.protocol.errors import Overloaded
from serve_app.config.sections import ResultUrlsConfig
from serve_app.store.redis import RedisTier
from serve_app.store.result_files import BadAddress, ResultFile, ResultFiles
from tests.serve_app.redis_servers import redis_at
from tests.serve_app.servers import free_port
from tests.serve_app.store.test_caller_state import Clock

PNG = ResultFile(b"\x89PNG picture", "png")
MEGABYTE = 2**20


@pytest.fixture
async def tiers(server: RedisServer) -> AsyncIterator[list[RedisTier]]:
    """Those of two processes."""
    server.client().flushall()
    made = [RedisTier(redis_at(server.url, timeout_ms=2000)) for _ in range(2)]
    yield made
    for tier in made:
        await tier.close()


async def test_an_address_leads_to_its_image_until_it_expires() -> None:
    clock = Clock()
    files = ResultFiles(ResultUrlsConfig(ttl_s=60), None, clock)
    address = await files.put(PNG)
    assert await files.get(address) == PNG
    clock.now += 61
    with pytest.raises(BadAddress):
        await files.get(address)


async def test_an_address_that_was_changed_leads_nowhere() -> None:
    files = ResultFiles(ResultUrlsConfig(), None)
    address = await files.put(PNG)
    for changed in (
        replace(address, expires=address.expires + 1),
        replace(address, file_id=address.file_id[:-1] + "x"),
        replace(address, signature=address.signature[:-1]),
        replace(address, signature="é"),
        replace(address, signature=""),
    ):
        with pytest.raises(BadAddress):
            await files.get(changed)


async def test_another_process_sends_the_image_from_redis(tiers: list[RedisTier]) -> None:
    here, there = (ResultFiles(ResultUrlsConfig(), tier) for tier in tiers)
    assert await there.get(await here.put(PNG)) == PNG


async def test_what_others_wrote_into_redis_is_never_sent(server: RedisServer, tiers: list[RedisTier]) -> None:
    files = ResultFiles(ResultUrlsConfig(), tiers[0])
    one, two = await files.put(PNG), await files.put(ResultFile(b"another", "png"))
    inside = server.client()
    places = [files._place(tiers[0], address.file_id) for address in (one, two)]
    inside.copy(places[1], places[0], replace=True)
    assert await files.get(one) is None
    inside.set(places[0], b"<html>")
    assert await files.get(one) is None
    inside.delete(places[0])
    assert await files.get(one) is None
    assert await files.get(two) is not None


@pytest.mark.parametrize("shared", [True, False])
async def test_there_is_room_for_so_many_bytes_and_again_when_they_are_old(
    shared: bool, tiers: list[RedisTier]
) -> None:
    clock = Clock()
    config = ResultUrlsConfig(ttl_s=80, max_bytes=MEGABYTE)
    files = ResultFiles(config, tiers[0] if shared else None, clock)
    half = ResultFile(b"x" * (MEGABYTE // 2 - 1000), "png")
    await files.put(half)
    clock.now += 40
    await files.put(half)
    with pytest.raises(Overloaded):
        await files.put(ResultFile(b"x" * 4000, "png"))
    clock.now += 55
    await files.put(half)


@pytest.mark.parametrize("shared", [True, False])
async def test_files_that_were_not_kept_after_all_take_no_room(shared: bool, tiers: list[RedisTier]) -> None:
    files = ResultFiles(ResultUrlsConfig(max_bytes=MEGABYTE), tiers[0] if shared else None)
    large, small = ResultFile(b"x" * (MEGABYTE * 3 // 4), "png"), ResultFile(b"y" * (MEGABYTE // 2), "png")
    for _ in range(5):
        with pytest.raises(Overloaded):
            await files.put_all([small, large])
        with pytest.raises(Overloaded):
            await files.put_all([small, small, small])
    address = await files.put(large)
    assert await files.get(address) == large


async def counted(server: RedisServer, tier: RedisTier) -> int:
    inside = server.client()
    return sum(int(inside.get(key) or 0) for key in inside.keys(f"{tier.prefix}files:*"))


async def test_bytes_that_could_not_be_written_are_given_back(
    server: RedisServer, tiers: list[RedisTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ResultFiles(ResultUrlsConfig(max_bytes=MEGABYTE), tiers[0])
    writing = asyncio.Event()

    async def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError

    async def hang(*_: Any, **__: Any) -> None:
        writing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Redis, "set", fail)
    with pytest.raises(Overloaded):
        await files.put(PNG)
    assert await counted(server, tiers[0]) == 0
    # The same where the caller leaves.
    monkeypatch.setattr(Redis, "set", hang)
    leaving = asyncio.create_task(files.put(PNG))
    await writing.wait()
    assert await counted(server, tiers[0]) > 0
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert await counted(server, tiers[0]) == 0


async def test_those_who_ask_at_once_do_not_get_more_room_than_there_is(
    server: RedisServer, tiers: list[RedisTier]
) -> None:
    both = [ResultFiles(ResultUrlsConfig(max_bytes=MEGABYTE), tier) for tier in tiers]
    file = ResultFile(b"x" * (MEGABYTE // 5), "png")
    kept = await asyncio.gather(*(both[i % 2].put(file) for i in range(16)), return_exceptions=True)
    assert len([each for each in kept if not isinstance(each, Overloaded)]) == 4
    assert MEGABYTE * 4 // 5 < await counted(server, tiers[0]) <= MEGABYTE


async def test_a_counter_that_is_none_is_begun_anew(server: RedisServer, tiers: list[RedisTier]) -> None:
    clock = Clock()
    files = ResultFiles(ResultUrlsConfig(ttl_s=80), tiers[0], clock)
    slot = f"{tiers[0].prefix}files:{int(clock.now / 10)}"
    inside = server.client()
    for spoil in (lambda: inside.set(slot, "<html>"), lambda: inside.rpush(slot, "1"), lambda: inside.set(slot, "-9")):
        inside.delete(slot)
        spoil()
        assert await files.get(await files.put(PNG)) == PNG
        assert 0 < int(inside.get(slot) or 0) < 1000


async def test_an_address_says_how_long_it_leads_to_its_image() -> None:
    clock = Clock()
    files = ResultFiles(ResultUrlsConfig(ttl_s=60), None, clock)
    address = await files.put(PNG)
    clock.now += 45
    assert files.seconds_left(address) in (14, 15)
    clock.now += 45
    assert files.seconds_left(address) == 0


async def test_without_redis_where_it_is_needed_callers_are_told_to_come_back() -> None:
    files = ResultFiles(ResultUrlsConfig(), RedisTier(redis_at(f"redis://127.0.0.1:{free_port()}/0")))
    with pytest.raises(Overloaded):
        await files.put(PNG)


@pytest.mark.parametrize("shared", [True, False])
async def test_room_that_certainly_does_not_suffice_is_said_before(shared: bool, tiers: list[RedisTier]) -> None:
    clock = Clock()
    files = ResultFiles(ResultUrlsConfig(ttl_s=80, max_bytes=MEGABYTE), tiers[0] if shared else None, clock)
    await files.check_room(16)
    await files.put(ResultFile(b"x" * (MEGABYTE - 1000), "png"))
    await files.check_room(1)
    with pytest.raises(Overloaded):
        await files.check_room(16)
    clock.now += 170
    await files.check_room(16)

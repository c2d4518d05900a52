"""Finished images behind addresses: signed, for a while, from every ingress, and no more than there is room for."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from bench.redis_server import RedisServer, redis_server
from deployments.engine.protocol.errors import Overloaded
from serve_app.config.sections import ResultUrlsConfig
from serve_app.store.redis import RedisTier
from serve_app.store.result_files import BadAddress, ResultFile, ResultFiles
from tests.serve_app.redis_servers import redis_at
from tests.serve_app.servers import free_port
from tests.serve_app.store.test_caller_state import Clock

PNG = ResultFile(b"\x89PNG picture", "png")
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


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

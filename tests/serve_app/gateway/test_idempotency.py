"""Stored answers: bounded, one running at a time, and shared by processes for as long as Redis answers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace

import pytest

from bench.redis_server import redis_server
from serve_app.config.sections import IdempotencyConfig
from serve_app.gateway import idempotency_store
from serve_app.gateway.idempotency import Idempotency, InProgress, Lease, Reused
from serve_app.gateway.idempotency_store import IdempotentRequest, RedisIdempotencyStore, StoredResponse
from serve_app.store.redis import RedisTier
from tests.serve_app.redis_servers import redis_at

WORK = IdempotentRequest("somebodys-key", b"the request")
OTHER = replace(WORK, fingerprint=b"another request")
ANSWER = StoredResponse(200, (("content-type", "image/png"), ("x-seed", "7")), b"\x89PNG\n\r\n\x00")
SIGNING = b"k" * 32


@dataclass
class Process:
    """One ingress process' own."""

    url: str | None = None
    key: bytes = SIGNING
    config: IdempotencyConfig = field(default_factory=IdempotencyConfig)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.tier = None if self.url is None else RedisTier(redis_at(self.url, timeout_ms=2000))
        shared = None if self.tier is None else RedisIdempotencyStore(self.tier, self.key, self.config.ttl_s)
        self.store = Idempotency(self.config, shared, Counter(), lambda: self.now)

    async def turn(self, work: IdempotentRequest = WORK) -> Lease:
        begun = await self.store.begin(work)
        assert isinstance(begun, Lease)
        return begun

    async def answer(self, work: IdempotentRequest = WORK) -> StoredResponse:
        begun = await self.store.begin(work)
        assert isinstance(begun, StoredResponse)
        return begun


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server() as server:
        yield server.url


@pytest.fixture
async def two(url: str) -> AsyncIterator[tuple[Process, Process]]:
    processes = Process(url), Process(url)
    assert processes[0].tier is not None
    await processes[0].tier.call(lambda redis: redis.flushall())
    yield processes
    for process in processes:
        assert process.tier is not None
        await process.tier.close()


async def test_the_same_request_gets_the_same_answer() -> None:
    process = Process()
    await (await process.turn()).release(ANSWER)
    assert await process.answer() == ANSWER
    assert process.store.counts["idempotent_replays"] == 1


async def test_while_it_is_at_work_it_is_in_conflict() -> None:
    process = Process()
    turn = await process.turn()
    with pytest.raises(InProgress):
        await process.store.begin(WORK)
    with pytest.raises(Reused):
        await process.store.begin(OTHER)
    await turn.release()
    await process.turn()


async def test_another_request_under_its_key_is_refused_and_leaves_it_alone() -> None:
    process = Process()
    await (await process.turn()).release(ANSWER)
    with pytest.raises(Reused):
        await process.store.begin(OTHER)
    assert await process.answer() == ANSWER


async def test_answers_are_kept_for_a_day_and_in_bounds() -> None:
    process = Process(config=IdempotencyConfig(memory_bytes=2**20))
    large = replace(ANSWER, body=bytes(400_000))
    works = [IdempotentRequest(f"key-{number}", b"it") for number in range(3)]
    for work in works[:2]:
        await (await process.turn(work)).release(large)
    assert await process.answer(works[0]) == large
    await (await process.turn(works[2])).release(large)
    assert process.store.kept.currsize <= 2**20
    assert set(process.store.kept) == {"key-0", "key-2"}
    await (await process.turn(WORK)).release(replace(ANSWER, body=bytes(2**20)))
    assert set(process.store.kept) == {"key-0", "key-2"}
    process.now += 86_400
    await (await process.turn(works[0])).release()
    await (await process.turn(works[2])).release()
    assert process.store.kept.currsize == 0


async def test_processes_share_answers_and_turns(two: tuple[Process, Process]) -> None:
    one, other = two
    turn = await one.turn()
    with pytest.raises(InProgress):
        await other.store.begin(WORK)
    with pytest.raises(Reused):
        await other.store.begin(OTHER)
    await turn.release(ANSWER)
    assert await other.answer() == ANSWER
    with pytest.raises(Reused):
        await other.store.begin(OTHER)
    assert not other.store.running
    # From memory now, without Redis.
    assert other.tier is not None
    await other.tier.call(lambda redis: redis.flushall())
    assert await other.answer() == ANSWER


async def test_a_turn_without_an_answer_is_the_next_ones(two: tuple[Process, Process]) -> None:
    one, other = two
    await (await one.turn()).release()
    await (await other.turn()).release(ANSWER)
    assert await one.answer() == ANSWER


async def test_of_many_at_once_one_has_the_turn(two: tuple[Process, Process]) -> None:
    begun = await asyncio.gather(*(two[i % 2].store.begin(WORK) for i in range(20)), return_exceptions=True)
    assert sum(isinstance(each, Lease) for each in begun) == 1
    assert sum(isinstance(each, InProgress) for each in begun) == 19


async def test_the_lock_of_a_process_that_died_ends_by_itself(
    two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency_store, "LOCK_S", 0.2)
    one, other = two
    turn = await one.turn()
    assert turn._lock is not None
    assert turn._lock._renewing is not None
    turn._lock._renewing.cancel()
    with pytest.raises(InProgress):
        await other.store.begin(WORK)
    await asyncio.sleep(0.3)
    theirs = await other.turn()
    # It was only away, and comes back: the turn is not its any more.
    await turn.release(replace(ANSWER, body=b"too late"))
    assert one.tier is not None
    there = await one.tier.call(lambda redis: redis.get(f"darkroom:idempotency:2:{WORK.name}"))
    assert isinstance(there, bytes)
    assert there.startswith(b"lock:")
    await theirs.release(ANSWER)
    one.store.kept.clear()
    assert await one.answer() == ANSWER


async def test_a_lock_is_held_for_as_long_as_it_takes(
    two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency_store, "LOCK_S", 0.4)
    monkeypatch.setattr(idempotency_store, "RENEW_S", 0.1)
    one, other = two
    turn = await one.turn()
    await asyncio.sleep(1.0)
    with pytest.raises(InProgress):
        await other.store.begin(WORK)
    await turn.release()


async def test_what_others_write_there_is_nobodys_answer(two: tuple[Process, Process]) -> None:
    one, other = two
    forger = Process(one.url, key=b"x" * 32)
    await (await forger.turn()).release(replace(ANSWER, body=b"forged"))
    assert forger.tier is not None
    await forger.tier.close()
    await (await one.turn()).release(ANSWER)
    # Nor is an answer that belongs to another key.
    assert one.tier is not None
    mine = IdempotentRequest("mine", WORK.fingerprint)
    await (await one.turn(mine)).release(ANSWER)
    await one.tier.call(lambda redis: redis.copy("darkroom:idempotency:2:mine", "darkroom:idempotency:2:theirs"))
    await (await other.turn(IdempotentRequest("theirs", WORK.fingerprint))).release()
    assert await other.answer(mine) == ANSWER


async def test_an_answer_too_large_to_share_is_kept_here_and_the_lock_is_gone(two: tuple[Process, Process]) -> None:
    one, other = two
    large = replace(ANSWER, body=bytes(idempotency_store.MAX_ANSWER_BYTES))
    await (await one.turn()).release(large)
    assert await one.answer() == large
    await (await other.turn()).release()


async def test_without_redis_this_process_remembers_alone_and_it_is_counted() -> None:
    with redis_server() as server:
        mine = Process(server.url)
        turn = await mine.turn()
        server.stop()
        await turn.release(ANSWER)
        assert await mine.answer() == ANSWER
        again = await mine.turn(IdempotentRequest("another-key", b"it"))
        with pytest.raises(InProgress):
            await mine.store.begin(IdempotentRequest("another-key", b"it"))
        await again.release()
    # The end of the first, and the beginning of the second; its end had no lock to give back.
    assert mine.store.counts["idempotency_degraded"] == 2
    assert mine.tier is not None
    await mine.tier.close()


async def test_whoever_leaves_on_the_way_in_leaves_no_turn_behind() -> None:
    closed = asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(silence, "127.0.0.1", 0) as silent:
        process = Process(f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}/0")
        coming = asyncio.ensure_future(process.store.begin(WORK))
        await asyncio.sleep(0.1)
        assert process.store.running
        coming.cancel()
        await asyncio.wait((coming,))
        assert coming.cancelled()
        assert not process.store.running
        assert process.tier is not None
        await process.tier.close()
        await closed.wait()

"""Results and the pictures that jobs start from have a budget each, and no tenant's jobs use up another one's."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from bench.redis_server import RedisServer
from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.request import Request
from serve_app.jobs.manager import TooManyPictures
from serve_app.jobs.pictures import pictures_of
from tests.serve_app.api.routes.test_style_transfers import SET
from tests.serve_app.fakes import Step, slow, success
from tests.serve_app.jobs.test_manager import Process
from tests.serve_app.jobs.test_pictures import restyling, submit

MIB = 2**20


def picture_of(size: int) -> bytes:
    """A picture of that many bytes."""
    return SET[0] + bytes(size - len(SET[0]))


def slow_with_pictures(request: Request) -> Sequence[Step]:
    return slow(request) if request.uploads else success(request)


Start = Callable[..., Process]


@pytest.fixture
async def start(redis_or_none: RedisServer | None) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        def start(**config: Any) -> Process:
            process = restyling("a", redis_or_none, **config)
            process.backend.script = slow_with_pictures
            stack.push_async_callback(process.close)
            return process

        yield start


async def test_waiting_pictures_cost_nobody_a_result(start: Start) -> None:
    process = start(max_bytes=MIB)
    waiting = await submit(process, pictures_of({0: picture_of(MIB - 10)}), "them")
    done = [await process.end_of(await process.submit("a", "b", tenant="me")) for _ in range(2)]
    for job in done:
        found = await process.now(job)
        assert [document["status"] for document in found.documents.values()] == [200, 200]
        assert len(await process.pictures(found)) == 2
    assert (await process.now(waiting)).state == "running"


async def test_results_take_no_room_from_pictures(start: Start, redis_or_none: RedisServer | None) -> None:
    process = start(max_bytes=MIB)
    unfinished = await submit(process, pictures_of({0: SET[0]}), "them")
    if redis_or_none is None:
        unfinished.files[0] = (bytes(MIB),)
    else:
        with redis_or_none.client() as client:
            client.hset("darkroom:jobs:bytes", unfinished.id, MIB)
    assert (await submit(process, pictures_of({0: picture_of(MIB // 2)}), "me")).state == "running"


async def test_no_tenants_pictures_take_all_the_room(start: Start) -> None:
    process = start(max_bytes=4 * MIB, picture_bytes_per_tenant=MIB)
    await submit(process, pictures_of({0: picture_of(MIB - 10)}), "them")
    with pytest.raises(TooManyPictures) as caught:
        await submit(process, pictures_of({0: SET[0]}), "them")
    assert caught.value.limit == MIB
    await process.submit("without pictures", tenant="them")
    # What is larger by itself would never fit, however long its caller waited.
    await submit(process, pictures_of({0: picture_of(MIB + 10)}), "me")
    for _ in range(2):
        await submit(process, pictures_of({0: picture_of(MIB - 100)}), "")
    with pytest.raises(Overloaded):
        await submit(process, pictures_of({0: picture_of(1000)}), "")


async def test_a_job_that_is_over_leaves_room_for_the_next(start: Start) -> None:
    process = start(max_bytes=MIB, picture_bytes_per_tenant=MIB)
    for _ in range(3):
        job = await submit(process, pictures_of({0: picture_of(MIB - 10)}), "me")
        await process.jobs.cancel(job.id, "me")

"""A job's pictures are kept as long as it is not over: where it is, once each, and unchanged."""

import asyncio
from typing import Any

import pytest

from bench.redis_server import RedisServer
from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.params import GenerationParams
from serve_app.jobs.job import Job, restore, spec_of, state_of
from serve_app.jobs.manager import new_job_id
from serve_app.jobs.pictures import NO_PICTURES, JobPictures, pictures_of
from tests.serve_app.api.routes.test_style_transfers import LOOK, SET
from tests.serve_app.fakes import STYLED, FakeBackend, slow, until
from tests.serve_app.jobs.test_manager import Process

CUP = GenerationParams(prompt="a cup", seed=7, model_name="styled")


def restyling(name: str, redis: RedisServer | None, **config: Any) -> Process:
    process = Process(name, redis, **config)
    process.backend.models = (STYLED,)
    return process


async def submit(process: Process, pictures: JobPictures, tenant: str = "acme") -> Job:
    params = dict.fromkeys(pictures.layout.images, CUP)
    return await process.jobs.submit(new_job_id(), params, {}, tenant, pictures=pictures)


def images_made(backend: FakeBackend) -> list[bytes | None]:
    return [request.uploads.image for request in backend.asked if request.uploads]


def test_equal_files_are_kept_once() -> None:
    pictures = pictures_of({0: SET[0], 1: SET[1], 2: SET[0]}, (LOOK, SET[1]))
    assert pictures.size == len(SET[0]) + len(SET[1]) + len(LOOK)
    first = pictures.uploads_of(0)
    assert first is not None
    assert (first.image, first.references) == (SET[0], (LOOK, SET[1]))
    assert pictures.identity_of(0) == pictures.identity_of(2) != pictures.identity_of(1)
    assert NO_PICTURES.uploads_of(0) is None
    assert pictures.without_files().size == 0


def test_a_job_says_which_pictures_it_has_and_one_without_says_nothing() -> None:
    job = Job("a" * 32, "acme", 1.0, 1, {0: CUP}, pictures=pictures_of({0: SET[0]}, (LOOK,), "pad"))
    again = restore(job.id, spec_of(job), state_of(job), {})
    assert again.pictures.layout == job.pictures.layout
    assert "pictures" not in spec_of(Job("b" * 32, "acme", 1.0, 1, {0: CUP}))


async def test_a_job_makes_its_pictures_and_lets_go_of_them(redis_or_none: RedisServer | None) -> None:
    process = restyling("a", redis_or_none)
    job = await submit(process, pictures_of(dict(enumerate(SET)), (LOOK,)))
    over = await process.end_of(job)
    assert over.succeeded == 3
    assert sorted(map(str, images_made(process.backend))) == sorted(map(str, SET))
    assert all(request.uploads.references == (LOOK,) for request in process.backend.asked if request.uploads)
    made = sum(map(len, await process.pictures(over)))
    if redis_or_none is not None:
        await until(lambda: not process.jobs._runs)
        with redis_or_none.client() as client:
            assert not client.exists(f"darkroom:job:{job.id}:pictures")
            assert [int(size) for size in client.hvals("darkroom:jobs:bytes")] == [made]
            assert not client.exists("darkroom:jobs:picture_bytes")
    await process.close()


async def test_pictures_that_leave_no_room_are_refused(redis_or_none: RedisServer | None) -> None:
    process = restyling("a", redis_or_none, max_bytes=2**20, running=1)
    process.backend.script = slow
    large = SET[0] + bytes(2**19)
    await submit(process, pictures_of({0: large}))
    with pytest.raises(Overloaded, match="no room"):
        await submit(process, pictures_of({0: large + b"!"}))
    await submit(process, pictures_of({0: SET[0]}))
    await process.close()


async def test_another_process_goes_on_with_the_same_pictures(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()
    first, second = restyling("a", server), restyling("b", server)
    first.backend.script = slow
    job = await submit(first, pictures_of(dict(enumerate(SET)), (LOOK,)))
    await until(lambda: len(first.backend.asked) == 2)
    await first.close()
    second.jobs.start()
    assert (await second.end_of(job)).succeeded == 3
    assert set(images_made(second.backend)) == set(SET)
    await second.close()


async def test_pictures_that_were_tampered_with_are_not_used(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()
    first, second = restyling("a", server), restyling("b", server)
    first.backend.script = slow
    job = await submit(first, pictures_of({0: SET[0]}, (LOOK,)))
    await until(lambda: len(first.backend.asked) == 1)
    await first.close()
    with server.client() as client:
        key = f"darkroom:job:{job.id}:pictures"
        digests = client.hkeys(key)
        client.hset(key, digests[0], client.hget(key, digests[1]))
    second.jobs.start()
    async with asyncio.timeout(5):
        while await second.jobs.find(job.id, "acme") is not None:
            await asyncio.sleep(0.02)
    assert second.backend.asked == []
    assert second.tier is not None
    assert second.tier.damaged
    await second.close()

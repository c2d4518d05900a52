"""Cancelled tasks are over, however often the canceller is cancelled itself."""

import asyncio

import pytest

from serve_app.tasks import cancel_and_wait


async def test_a_task_is_over_even_if_the_wait_for_it_is_cancelled_twice() -> None:
    async def slowly() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            raise ValueError("nobody hears of it")

    task = asyncio.create_task(slowly())
    await asyncio.sleep(0)
    ending = asyncio.create_task(cancel_and_wait(task))
    for _ in range(2):
        await asyncio.sleep(0.001)
        ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert task.done()


async def test_what_is_over_is_no_error() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await cancel_and_wait(task, task)

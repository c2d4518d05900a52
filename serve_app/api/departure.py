"""Noticing that the client has left, and stopping its work at once.

Neither uvicorn nor Ray Serve cancels a handler when its client leaves: somebody has to listen.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")


async def while_client_stays(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`. When the client leaves first, `work` is cancelled, awaited, and ClientDisconnect raised."""
    task = asyncio.ensure_future(work)
    departure = asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait((task, departure), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await _cancel(task)
        await _cancel(departure)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    # `wait`, not `await task`: it raises nothing of the task's, and the task's result was taken before.
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()

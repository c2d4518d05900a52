"""Ending tasks so that they are over, whatever happens to whoever ends them.

A client that leaves is often noticed twice, by its connection and by Ray, which cancels everything that was begun for
it; so the wait for a cancelled task is itself cancelled. Whoever goes on then closes generators that still run.
"""

import asyncio
from typing import Any


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancels the tasks, and returns when they are over; what they failed with is nobody's any more.

    Being cancelled meanwhile is put off until then.
    """
    for task in tasks:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while running := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in tasks:
        if not task.cancelled():
            task.exception()
    if cancelled is not None:
        raise cancelled

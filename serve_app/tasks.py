"""Cancels tasks so that they are over, even if the canceller is itself cancelled meanwhile.

A disconnect is often noticed twice, by the connection and by Ray, which cancels everything that was started for the
client; so the wait for a cancelled task is itself cancelled. Code that went on then would close generators that still
run.
"""

import asyncio
from typing import Any


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancels the tasks, returns when they are over, and discards their exceptions.

    A cancellation of the caller is delayed until then.
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

"""The mailbox keeps everything but old news."""

import asyncio

from deployments.engine.errors import EngineStopped
from deployments.engine.events import Accepted, ImageFailed, Progress
from deployments.engine.mailbox import Mailbox


async def test_unread_progress_is_replaced_and_nothing_else_is() -> None:
    mailbox = Mailbox(asyncio.get_running_loop())
    failed = ImageFailed("x", 0, EngineStopped("gone"))
    for event in (Accepted("x", 0), Progress("x", 1, 9), Progress("x", 2, 9), failed, Progress("x", 3, 9)):
        mailbox.put(event)
    read = [await mailbox.get() for _ in range(4)]
    assert read == [Accepted("x", 0), Progress("x", 2, 9), failed, Progress("x", 3, 9)]

"""Sends the messages of one kind, some at a time, and each again until it has arrived, is refused, or time is up."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from serve_app.callbacks.message import Claim, Kind, Message
from serve_app.callbacks.outbox import Outbox
from serve_app.callbacks.slots import Slots
from serve_app.config.callbacks import CallbacksConfig
from serve_app.jobs.callbacks import Settlement
from serve_app.tasks import cancel_and_wait

log = logging.getLogger(__name__)

Clock = Callable[[], float]

POLL_S: Final = 1.0
"""Messages of other processes, and those that are due again, wait at most so long for somebody to look."""

# Beyond a try's own time limit: what it takes to write down how it went.
_MARGIN_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """How a try went: `done`, to be made again (`retry`), or never again (`stop`); `reason` is a code.

    `retry_after_s`: the other side's wish. `size` and `sha256` are those of what was sent, if it was a file.
    """

    outcome: Literal["done", "retry", "stop"]
    reason: str = ""
    retry_after_s: float | None = None
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class RetryPlan:
    """Waits `first_s`, doubled with each try up to `longest_s`; gives up `for_s` after the message was made.

    Of each wait a random half may be missing: those who failed together do not return together.
    """

    first_s: float
    longest_s: float
    for_s: float

    def wait_s(self, attempt: DeliveryAttempt, message: Message, now: float) -> float | None:
        """Returns the seconds until the next try of a message that was tried `message.attempts` times; None for none.

        `now` is in seconds since 1970.
        """
        if attempt.outcome != "retry":
            return None
        doubled = self.first_s * 2.0 ** min(message.attempts - 1, 32)
        own = min(self.longest_s, doubled) * random.uniform(0.5, 1.0)
        wait = max(own, attempt.retry_after_s or 0.0)
        return wait if now + wait <= message.created + self.for_s else None


def retry_plan(config: CallbacksConfig, kind: Kind) -> RetryPlan:
    """The plan for messages of that kind."""
    for_s = config.webhook_retry_for_s if kind == "webhook" else config.upload_retry_for_s
    return RetryPlan(config.first_retry_s, config.longest_retry_s, for_s)


class Deliverer:
    """Makes each try by `send`, and passes a message's end to `settle`. `counts` are of tries, by kind and outcome."""

    def __init__(
        self,
        kind: Kind,
        config: CallbacksConfig,
        outbox: Outbox,
        send: Callable[[Message], Awaitable[DeliveryAttempt]],
        settle: Callable[[Message, Settlement], Awaitable[None]],
        counts: Counter[tuple[str, str]],
        clock: Clock = time.time,
    ) -> None:
        self._kind, self._outbox, self._send, self._settle = kind, outbox, send, settle
        self._counts, self._clock = counts, clock
        self._plan = retry_plan(config, kind)
        self._slots = Slots(config.in_flight, config.in_flight_per_host)
        timeout_s = config.timeout_s if kind == "webhook" else config.upload_timeout_s
        self._hold_s = timeout_s + _MARGIN_S
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to send."""
        self._loop_task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Ends what is being sent; others may send it at once."""
        if self._loop_task is not None:
            await cancel_and_wait(self._loop_task, *self._tasks)

    def wake(self) -> None:
        """Looks for messages now."""
        self._woken.set()

    async def _work(self) -> None:
        while True:
            self._woken.clear()
            try:
                claims = await self._claim()
            except Exception:
                log.exception("unexpected error while looking for messages")
                claims = []
            for claim in claims:
                self._begin(claim)
            # Whatever there is left to send waits for its time, or for a slot.
            await self._wait()

    async def _claim(self) -> list[Claim]:
        return await self._outbox.claim(self._kind, self._slots, self._hold_s) if self._slots.free else []

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_S):
                await self._woken.wait()
        except TimeoutError:
            return

    def _begin(self, claim: Claim) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(claim))
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._end(ended, claim.message))

    def _end(self, task: asyncio.Task[None], message: Message) -> None:
        self._tasks.discard(task)
        self._slots.release(message)
        self.wake()

    async def _deliver(self, claim: Claim) -> None:
        message = claim.message
        try:
            attempt = await self._send(message)
            await self._conclude(claim, message.model_copy(update={"attempts": message.attempts + 1}), attempt)
        except asyncio.CancelledError:
            await self._outbox.postpone(claim, message, 0.0)
            raise
        except Exception:
            # Its claim runs out, and it is tried again.
            log.exception("%s %s: unexpected error", self._kind, message.id)

    async def _conclude(self, claim: Claim, message: Message, attempt: DeliveryAttempt) -> None:
        wait_s = self._plan.wait_s(attempt, message, self._clock())
        if wait_s is not None:
            self._counts[self._kind, "retried"] += 1
            log.info("%s %s to %s: %s, again in %.0f s", self._kind, message.id, message.host, attempt.reason, wait_s)
            await self._outbox.postpone(claim, message, wait_s)
            if wait_s < POLL_S:
                asyncio.get_running_loop().call_later(wait_s, self.wake)
            return
        done = attempt.outcome == "done"
        self._counts[self._kind, "delivered" if done else "failed"] += 1
        if not done:
            args = (self._kind, message.id, message.host, attempt.reason, message.attempts)
            log.warning("%s %s to %s: %s, given up after %d tries", *args)
        settlement = Settlement(
            done=done, attempts=message.attempts, reason=attempt.reason, size=attempt.size, sha256=attempt.sha256
        )
        await self._settle(message, settlement)
        await self._outbox.remove(claim)

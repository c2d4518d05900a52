"""Keeps messages until they have arrived or were given up, and what has come of each: here, in this process."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from cachetools import LRUCache

from serve_app.callbacks.message import KINDS, Claim, Kind, Message
from serve_app.callbacks.message_queues import MessageQueues
from serve_app.callbacks.slots import Slots
from serve_app.jobs.callbacks import Settlement

Clock = Callable[[], float]


class UploadCount(NamedTuple):
    """How many of a job's uploads have been `settled`, of how many; None while its images are still being made."""

    settled: int
    expected: int | None

    @property
    def complete(self) -> bool:
        return self.expected is not None and self.settled >= self.expected


class Outbox(Protocol):
    """Used on one event loop. A message whose claim has run out is claimed anew: it is sent at least once."""

    async def add(self, messages: Sequence[Message]) -> Collection[str]:
        """Keeps messages of one kind and job, but for those that are kept or settled already.

        Returns the ids of those without room.
        A tenant has room while it has fewer than there are places free: so it leaves half of the rest to the next.
        """

    async def claim(self, kind: Kind, slots: Slots, hold_s: float) -> list[Claim]:
        """Claims messages that are due, each for `hold_s` seconds, as far as `slots` go, and takes these."""

    async def postpone(self, claim: Claim, message: Message, delay_s: float) -> None:
        """Keeps `message` in the place of the claimed one, due after `delay_s`, unless somebody else has it now."""

    async def remove(self, claim: Claim) -> None:
        """Forgets the claimed message."""

    async def settle(self, message: Message, settlement: Settlement) -> UploadCount:
        """Keeps what has come of a message."""

    async def expect(self, job_id: str, uploads: int) -> UploadCount:
        """Keeps how many uploads a job has, now that it is over."""

    async def settlements(self, job_id: str) -> Mapping[str, Settlement]:
        """Returns what has come of the job's messages, by their places."""

    def waiting_here(self) -> int:
        """How many messages end with this process."""


@dataclass(slots=True)
class _Record:
    settlements: dict[str, Settlement] = field(default_factory=dict)
    expected: int | None = None
    uploads: set[str] = field(default_factory=set)

    def count(self) -> UploadCount:
        return UploadCount(len(self.uploads), self.expected)


class MemoryOutbox:
    """An `Outbox` without Redis: it lives and ends with this process.

    Keeps `waiting` messages of each kind, and what has come of those of the last `jobs` jobs.
    """

    def __init__(self, waiting: int, jobs: int, clock: Clock = time.monotonic) -> None:
        self._most, self._clock = waiting, clock
        self._queues: dict[Kind, MessageQueues] = {kind: MessageQueues() for kind in KINDS}
        self._records: LRUCache[str, _Record] = LRUCache(jobs)

    async def add(self, messages: Sequence[Message]) -> Collection[str]:
        without_room = []
        for message in messages:
            queues = self._queues[message.kind]
            if self._knows(message):
                continue
            if self._has_room(queues, message.tenant):
                queues.put(message, self._now())
            else:
                without_room.append(message.id)
        return without_room

    async def claim(self, kind: Kind, slots: Slots, hold_s: float) -> list[Claim]:
        return self._queues[kind].claim(slots, self._now(), _ms(hold_s))

    async def postpone(self, claim: Claim, message: Message, delay_s: float) -> None:
        if self._holds(claim):
            self._queues[message.kind].put(message, self._now() + _ms(delay_s))

    async def remove(self, claim: Claim) -> None:
        self._queues[claim.message.kind].remove(claim.message)

    async def settle(self, message: Message, settlement: Settlement) -> UploadCount:
        record = self._records.setdefault(message.job, _Record())
        record.settlements[message.place] = settlement
        if message.kind == "upload":
            record.uploads.add(message.place)
        return record.count()

    async def expect(self, job_id: str, uploads: int) -> UploadCount:
        record = self._records.setdefault(job_id, _Record())
        record.expected = uploads
        return record.count()

    async def settlements(self, job_id: str) -> Mapping[str, Settlement]:
        return dict(self._records[job_id].settlements) if job_id in self._records else {}

    def count(self, job_id: str) -> UploadCount:
        """Returns what this process has noted of the job's uploads."""
        record = self._records.get(job_id)
        return UploadCount(0, None) if record is None else record.count()

    def waiting_here(self) -> int:
        return sum(len(queues) for queues in self._queues.values())

    def _knows(self, message: Message) -> bool:
        record = self._records.get(message.job)
        settled = record is not None and message.place in record.settlements
        return settled or message.id in self._queues[message.kind]

    def _has_room(self, queues: MessageQueues, tenant: str) -> bool:
        free = self._most - len(queues)
        return free > 0 and (not tenant or queues.of_tenant(tenant) < free)

    def _holds(self, claim: Claim) -> bool:
        return self._queues[claim.message.kind].holds(claim)

    def _now(self) -> int:
        return _ms(self._clock())


def _ms(seconds: float) -> int:
    return int(seconds * 1000)

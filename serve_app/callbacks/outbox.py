"""Keeps messages until they have arrived or were given up, and what has come of each: here, in this process."""

import heapq
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple, Protocol

from cachetools import LRUCache

from serve_app.callbacks.message import KINDS, Kind, Message
from serve_app.jobs.callbacks import Settlement

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Claim:
    """A message that is this process' to send, until `until`: a time of the outbox' own, which tells claims apart."""

    message: Message
    until: int


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
        """Keeps messages of one kind, save those that are kept already. Returns the ids of those without room."""

    async def claim(self, kind: Kind, most: int, hold_s: float) -> list[Claim]:
        """Claims at most `most` messages that are due, each for `hold_s` seconds."""

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
        self._kept: dict[Kind, dict[str, tuple[Message, int]]] = {kind: {} for kind in KINDS}
        # Those that are due first; what has moved since it was put there is skipped.
        self._due: dict[Kind, list[tuple[int, int, str]]] = {kind: [] for kind in KINDS}
        self._order = count()
        self._records: LRUCache[str, _Record] = LRUCache(jobs)

    async def add(self, messages: Sequence[Message]) -> Collection[str]:
        without_room = []
        for message in messages:
            kept = self._kept[message.kind]
            if message.id not in kept and len(kept) >= self._most:
                without_room.append(message.id)
            elif message.id not in kept:
                self._put(message, self._now())
        return without_room

    async def claim(self, kind: Kind, most: int, hold_s: float) -> list[Claim]:
        now, claims = self._now(), list[Claim]()
        due, kept = self._due[kind], self._kept[kind]
        while due and due[0][0] <= now and len(claims) < most:
            at, _, message_id = heapq.heappop(due)
            message, until = kept.get(message_id, (None, 0))
            if message is not None and until == at:
                claims.append(Claim(message, self._put(message, now + _ms(hold_s))))
        return claims

    async def postpone(self, claim: Claim, message: Message, delay_s: float) -> None:
        if self._holds(claim):
            self._put(message, self._now() + _ms(delay_s))

    async def remove(self, claim: Claim) -> None:
        self._kept[claim.message.kind].pop(claim.message.id, None)

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
        return sum(len(kept) for kept in self._kept.values())

    def _put(self, message: Message, due: int) -> int:
        # Every time is another, so that it tells whose a claim is.
        while self._kept[message.kind].get(message.id, (None, -1))[1] == due:
            due += 1
        self._kept[message.kind][message.id] = (message, due)
        heapq.heappush(self._due[message.kind], (due, next(self._order), message.id))
        return due

    def _holds(self, claim: Claim) -> bool:
        return self._kept[claim.message.kind].get(claim.message.id, (None, -1))[1] == claim.until

    def _now(self) -> int:
        return _ms(self._clock())


def _ms(seconds: float) -> int:
    return int(seconds * 1000)

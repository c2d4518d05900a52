"""Whose job is next: tenants take turns, so one that has sent many holds up nobody else's.

Start-time fair queueing (Goyal, Vin, Cheng, 1996), a job being one unit of service.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class QueuedJob(NamedTuple):
    """An unfinished job, one that is being worked on included. `tenant` may be any word that stands for its tenant, and
    `number` is the round in which it has its turn.
    """

    id: str
    tenant: str
    number: int


def next_round(unfinished: Sequence[QueuedJob], tenant: str) -> int:
    """The round of a job of `tenant` that comes now: the one that is on, or the one after the tenant's last."""
    now = min((turn.number for turn in unfinished), default=0)
    return max((turn.number + 1 for turn in unfinished if turn.tenant == tenant), default=now)


def fair_order(unfinished: Iterable[QueuedJob]) -> list[str]:
    """The ids of jobs that are given in the order of their coming, in the order of their turns."""
    return [turn.id for turn in sorted(unfinished, key=lambda turn: turn.number)]


def digest_of(tenant: str) -> str:
    """Returns what stands for a tenant in Redis, where names of tenants do not belong."""
    return hashlib.blake2b(tenant.encode(), digest_size=16).hexdigest()

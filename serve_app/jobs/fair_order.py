"""Orders jobs fairly: tenants take turns, so that one with many jobs holds up nobody else's.

Start-time fair queueing (Goyal, Vin, Cheng, 1996), a job being one unit of service.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class QueuedJob(NamedTuple):
    """An unfinished job, one that is being worked on included. `tenant` may be any word that stands for its tenant, and
    `round` is when it runs: those of a lower round come first. `picture_bytes` have the pictures that it starts from.
    """

    id: str
    tenant: str
    round: int
    picture_bytes: int = 0


def next_round(unfinished: Sequence[QueuedJob], tenant: str) -> int:
    """Returns the round of a new job of `tenant`: the current one, or the one after the tenant's last."""
    now = min((each.round for each in unfinished), default=0)
    return max((each.round + 1 for each in unfinished if each.tenant == tenant), default=now)


def fair_order(unfinished: Iterable[QueuedJob]) -> list[str]:
    """Returns the ids of `unfinished` jobs, which come in the order of their creation, in the order of their rounds."""
    return [each.id for each in sorted(unfinished, key=lambda each: each.round)]


def digest_of(tenant: str) -> str:
    """Returns what stands for a tenant in Redis, where names of tenants do not belong."""
    return hashlib.blake2b(tenant.encode(), digest_size=16).hexdigest()

"""Records what clients saw of a server, and checks whether it was right.

The rules: every request has exactly one end; every picture belongs to its request; nobody waits for ever; and all
counts (the clients', the server's statistics) agree, with

    accepted = succeeded + failed + cancelled

A history is plain data, so the checker is tested with histories that break each rule.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["succeeded", "refused", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Sent:
    """A request was due at `at`, in seconds of the clients' clock, for the picture named `wanted`."""

    id: str
    wanted: str
    at: float
    must_fail: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An end of the request `id`, as the answer itself names it. `cancelled` is the client's own doing.

    `shows` is the golden picture that the answer's is like, None where it is like none. `retry_after` says whether the
    answer told when to come back.
    """

    id: str
    outcome: Outcome
    at: float
    shows: str | None = None
    status: int = 0
    code: str = ""
    retry_after: bool = False


@dataclass(slots=True)
class History:
    """All that the clients know. `broken` are requests whose connection broke, once for every time."""

    sent: list[Sent] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def ends(self) -> dict[str, Answer]:
        """The first answer of each request that has one."""
        return {answer.id: answer for answer in reversed(self.answers)}


@dataclass(frozen=True, slots=True)
class Counts:
    """How many requests ended how, as `source` has counted them."""

    source: str
    accepted: int
    succeeded: int
    failed: int
    cancelled: int
    refused: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What breaks a rule, by the requests' ids, and the clients' own count."""

    counts: Counts
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    strangers: tuple[str, ...]
    swapped: tuple[str, ...]
    late: tuple[str, ...]
    failed: tuple[str, ...]
    spared: tuple[str, ...]
    unexplained: tuple[str, ...]
    miscounted: tuple[str, ...]

    def complaints(self) -> list[str]:
        """One line for every rule that is broken."""
        laws = {
            "without an end": self.lost,
            "with more than one end": self.doubled,
            "answered though nobody asked": self.strangers,
            "with another's picture": self.swapped,
            "answered too late": self.late,
            "failed though they need not": self.failed,
            "must fail for good and did not": self.spared,
            "refused without saying when to come back": self.unexplained,
        }
        broken = [f"{len(ids)} {law}: {', '.join(ids[:5])}" for law, ids in laws.items() if ids]
        return [*broken, *self.miscounted]


def check(history: History, others: Sequence[Counts] = (), *, patience_s: float) -> Verdict:
    """Judges a history that is over. `others` are other counts of the same requests.

    An answer that came `patience_s` after its request was due is late: by then its caller has given up.
    """
    asked = {sent.id: sent for sent in history.sent}
    known = [answer for answer in history.answers if answer.id in asked]
    times = Counter(answer.id for answer in known)
    counts = counts_of_clients(history)
    return Verdict(
        counts=counts,
        lost=tuple(name for name in asked if not times[name]),
        doubled=tuple(name for name in asked if times[name] > 1),
        strangers=tuple(answer.id for answer in history.answers if answer.id not in asked),
        swapped=_named(a for a in known if a.outcome == "succeeded" and a.shows != asked[a.id].wanted),
        late=_named(a for a in known if a.at - asked[a.id].at > patience_s),
        failed=_named(a for a in known if a.outcome == "failed" and not asked[a.id].must_fail),
        spared=_named(a for a in known if a.outcome != "failed" and asked[a.id].must_fail),
        unexplained=_named(a for a in known if a.outcome == "refused" and not a.retry_after),
        miscounted=tuple(line for other in others for line in _differences(counts, other, _slack(history))),
    )


def counts_of_clients(history: History) -> Counts:
    """Returns the clients' counts. A request without an end counts as accepted, as far as its client knows."""
    outcomes = Counter(answer.outcome for answer in history.ends().values())
    return Counts(
        source="the clients",
        accepted=len(history.sent) - outcomes["refused"],
        succeeded=outcomes["succeeded"],
        failed=outcomes["failed"],
        cancelled=outcomes["cancelled"],
        refused=outcomes["refused"],
    )


def counts_of_server(before: Mapping[str, Any], after: Mapping[str, Any]) -> Counts:
    """Returns what the server's statistics counted between two readings, for requests of one image each."""
    more = {name: after[name] - before[name] for name in ("requests", "refused", "cancelled", "finished", "failures")}
    broken = after["broken"] - before["broken"]
    return Counts(
        source="the server's statistics",
        accepted=more["requests"] - more["refused"],
        succeeded=more["finished"] - more["failures"],
        failed=more["failures"] + broken,
        cancelled=more["cancelled"],
        refused=more["refused"],
    )


def rule_of_three(trials: int) -> float:
    """Returns the rate that zero events in `trials` bound, with 95 % confidence (Hanley and Lippman-Hand, 1983)."""
    return min(1.0, 3 / trials) if trials else 1.0


def _slack(history: History) -> int:
    """Requests whose end both sides may name differently, or count again: those whose client left while the answer was
    on its way, those asked again after a broken connection, and those that are to fail (refused late, says the server).
    """
    left = sum(answer.outcome == "cancelled" for answer in history.answers)
    return left + len(history.broken) + sum(sent.must_fail for sent in history.sent)


def _differences(ours: Counts, theirs: Counts, slack: int) -> list[str]:
    lines = []
    if theirs.accepted != theirs.succeeded + theirs.failed + theirs.cancelled:
        lines.append(f"{theirs.source}: of {theirs.accepted} accepted not every one has ended once")
    for what in ("accepted", "succeeded", "failed", "cancelled", "refused"):
        mine, other = getattr(ours, what), getattr(theirs, what)
        if abs(mine - other) > slack:
            lines.append(f"{what}: {mine} say {ours.source}, {other} says {theirs.source}")
    return lines


def _named(answers: Any) -> tuple[str, ...]:
    return tuple(answer.id for answer in answers)

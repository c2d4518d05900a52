"""Computes from a history how long a fault was felt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.clients.history import Answer, History, Sent
from bench.timing import percentile

# p99 is back when it is within this factor of what it was, or within so many seconds where that was next to nothing.
BACK_FACTOR = 1.5
BACK_MARGIN_S = 0.1

# So many requests in a row must be quick for it to be back: some ten seconds, longer than a lull between two stalls.
IN_A_ROW = 30


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds and milliseconds around a fault; None where there was nothing to measure, or it did not come to that.

    `first_success_s`: until a request that was due after the fault was answered with its picture. `p99_back_s`: until
    the last slow one was answered before `IN_A_ROW` requests of which none took longer than p99 before, and a margin.
    """

    p99_before_ms: float | None
    p99_during_ms: float | None
    first_success_s: float | None
    p99_back_s: float | None


def recovery(history: History, fault_at: float) -> Recovery:
    """Of the requests that succeeded; those due before `fault_at` and ended before it are what was usual."""
    ends = history.ends()
    served = [(sent, end) for sent in history.sent if (end := ends.get(sent.id)) and end.outcome == "succeeded"]
    before = [took(sent, end) for sent, end in served if end.at <= fault_at]
    after = sorted((sent.at, took(sent, end), end.at) for sent, end in served if sent.at > fault_at)
    # What was on its way when it happened has felt it, too.
    during = [took(sent, end) for sent, end in served if end.at > fault_at]
    usual = percentile(before, 99) if before else None
    return Recovery(
        p99_before_ms=_ms(usual),
        p99_during_ms=_ms(percentile(during, 99) if during else None),
        first_success_s=min((end - fault_at for _, _, end in after), default=None),
        p99_back_s=None if usual is None else _p99_back(after, usual, fault_at),
    )


def _p99_back(after: Sequence[tuple[float, float, float]], usual: float, fault_at: float) -> float | None:
    """`after` holds when each was due, how long it took, and when it ended."""
    limit = max(usual * BACK_FACTOR, usual + BACK_MARGIN_S)
    slow = [seconds > limit for _, seconds, _ in after]
    starts = range(len(after) - IN_A_ROW + 1)
    back = next((start for start in starts if not any(slow[start : start + IN_A_ROW])), None)
    if back is None:
        return None
    return max((end - fault_at for _, _, end in after[:back]), default=0.0)


def took(sent: Sent, end: Answer) -> float:
    """Seconds from when it was due."""
    return end.at - sent.at


def within(history: History, outcome: Callable[[Answer], bool]) -> list[float]:
    """Seconds that the answers took of which `outcome` is true."""
    asked = {sent.id: sent for sent in history.sent}
    return [took(asked[answer.id], answer) for answer in history.ends().values() if outcome(answer)]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)

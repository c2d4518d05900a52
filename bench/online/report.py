"""Reads the measured runs: the table, who is the best peer, and whether the targets are met."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from bench.online.contenders import CONTENDERS, DARKROOM

GOODPUT_TARGET: Final = 2.0
"""Times the best peer's, at the highest rate at which any peer still serves half of the requests in time."""

HALF: Final = 0.5

P95_TARGET: Final = 0.5
"""Of the best peer's, at `LOAD` of that peer's capacity."""

LOAD: Final = 0.7

COUNTS: Final = ("refused", "failed", "left")

Run = Mapping[str, Any]


def best_at(runs: Iterable[Run], rate: float) -> Run | None:
    """Returns the peer's run with the highest goodput at `rate`."""
    at_rate = [run for run in runs if run["rate"] == rate and run["contender"] != DARKROOM]
    return max(at_rate, key=lambda run: float(run["goodput_per_s"]), default=None)


def carried_by_peers(runs: Iterable[Run]) -> tuple[str, float, float | None] | None:
    """Returns the peer that serves half of the requests in time at the highest rate of all peers, that rate, and the
    lowest higher one at which it does not, if any was measured; None if no peer serves half at any rate.
    """
    peers = [run for run in runs if run["contender"] != DARKROOM]
    carried = [run for run in peers if run["in_time"] >= HALF]
    if not carried:
        return None
    best = max(carried, key=lambda run: (float(run["rate"]), float(run["goodput_per_s"])))
    higher = [run["rate"] for run in peers if run["contender"] == best["contender"] and run["rate"] > best["rate"]]
    return best["contender"], best["rate"], min(higher, default=None)


def best_capacity(runs: Iterable[Run]) -> tuple[str, float] | None:
    """Returns the peer with the highest throughput at any rate, and that throughput, in pictures a second."""
    peers = [run for run in runs if run["contender"] != DARKROOM]
    best = max(peers, key=lambda run: float(run["throughput_per_s"]), default=None)
    return None if best is None else (best["contender"], best["throughput_per_s"])


def verdict(runs: Iterable[Run], at_load: Mapping[str, Run]) -> dict[str, Any]:
    """Computes the two figures that have targets; None where a run is missing.

    `at_load` are the runs of Darkroom and the best peer at `LOAD` of that peer's capacity, by contender.
    """
    known = list(runs)
    ours = {run["rate"]: run for run in known if run["contender"] == DARKROOM}
    found: dict[str, Any] = {"goodput_target": GOODPUT_TARGET, "p95_target": P95_TARGET}
    carried = carried_by_peers(known)
    if carried is not None and carried[1] in ours:
        best = best_at(known, carried[1])
        assert best is not None
        found |= {
            "at_rate": carried[1],
            "best_peer": best["contender"],
            "goodput_ratio": round(ours[carried[1]]["goodput_per_s"] / best["goodput_per_s"], 2),
        }
    others = [name for name in at_load if name != DARKROOM]
    if others and DARKROOM in at_load:
        mine, theirs = at_load[DARKROOM]["p95_s"], at_load[others[0]]["p95_s"]
        found |= {
            "load_peer": others[0],
            "load_rate": at_load[DARKROOM]["rate"],
            "p95_ratio": None if mine is None or theirs is None else round(mine / theirs, 2),
        }
    return found


def table(runs: Iterable[Run]) -> str:
    """Returns the runs as a table in Markdown, rate by rate."""
    order = {one.name: index for index, one in enumerate(CONTENDERS)}
    labels = {one.name: one.label for one in CONTENDERS}
    heads = ("requests/s", "contender", "goodput/s", "in time", "throughput/s", "p50 s", "p95 s", "p99 s", *COUNTS)
    lines = [f"| {' | '.join(heads)} |", "|---:|---|" + "---:|" * (len(heads) - 2)]
    for run in sorted(runs, key=lambda run: (run["rate"], order[run["contender"]])):
        times = " | ".join(_seconds(run[f"p{percent}_s"]) for percent in (50, 95, 99))
        lines.append(
            f"| {run['rate']:g} | {labels[run['contender']]} | {run['goodput_per_s']:.2f} | {run['in_time']:.0%} | "
            f"{run['throughput_per_s']:.2f} | {times} | {' | '.join(str(run[count]) for count in COUNTS)} |"
        )
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"

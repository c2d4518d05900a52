"""Writes the fault bench's table and card, as lines and into docs/reliability.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.clients.history import rule_of_three
from bench.faults.targets import misses

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"

# Clients that are later than this have measured themselves, too.
LAG_MS = 25.0

HEADS = (
    "fault",
    "sent",
    "succeeded",
    "refused",
    "failed",
    "lost",
    "swapped",
    "p99 before, ms",
    "p99 during, ms",
    "first success, s",
    "p99 back, s",
    "targets",
)


def cells(row: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    failed = f"{row['failed']} (must)" if row["failed"] and not row["failed_needlessly"] else str(row["failed"])
    return [
        row["fault"],
        *(str(row[name]) for name in ("sent", "succeeded", "refused")),
        failed,
        *(str(row[name]) for name in ("lost", "swapped")),
        *(_figure(row[name], 0) for name in ("p99_before_ms", "p99_during_ms")),
        *(_figure(row[name], 1) for name in ("first_success_s", "p99_back_s")),
        "met" if not misses(row) else "missed",
    ]


def section(rows: Sequence[Mapping[str, Any]]) -> str:
    """All that is written between the markers. The rows may come from several runs: each names its commit."""
    return "\n\n".join(
        [_card(rows), _table(HEADS, [cells(row) for row in rows]), _zeros(rows), *_remarks(rows), _expectations(rows)]
    )


def write(page: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Puts the section between the page's markers."""
    text = page.read_text()
    head, _, rest = text.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise ValueError(f"{page.name} has no {BEGIN} and {END}")
    page.write_text(f"{head}{BEGIN}\n\n{section(rows)}\n\n{END}{tail}")


def _card(rows: Sequence[Mapping[str, Any]]) -> str:
    card = rows[0]["card"]
    groups = [
        ", ".join(f"{name} {value}" for name, value in card[group].items() if value is not None)
        for group in ("hardware", "versions")
    ]
    commits = ", ".join(dict.fromkeys(str(row["card"]["commit"]) for row in rows))
    return f"Hardware: {groups[0]}.  \nVersions: {groups[1]}.  \nCommit: {commits}."


def _zeros(rows: Sequence[Mapping[str, Any]]) -> str:
    """How much the zeros say, all rows together."""
    sent = sum(row["sent"] for row in rows)
    found = [(name, sum(row[name] for row in rows)) for name in ("lost", "swapped", "failed_needlessly")]
    said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in found)
    zeros = (
        f"; none of {sent} bounds a rate at {rule_of_three(sent):.2%}" if min(count for _, count in found) == 0 else ""
    )
    return f"All rows together: {sent} requests, {said}{zeros}."


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the table has no column for: missed targets, overload's figures, repeated requests."""
    lines = [f"- {row['fault']}: {line}" for row in rows for line in _notes(row)]
    return ["\n".join(lines)] if lines else []


def _notes(row: Mapping[str, Any]) -> list[str]:
    notes = [f"**missed**: {miss}" for miss in misses(row)]
    if "goodput_share" in row:
        share, peak, goodput = row["goodput_share"], row["peak_per_s"], row["goodput_per_s"]
        notes.append(f"goodput {goodput:.2f}/s, {share:.0%} of the peak of {peak:.2f}/s")
    if row["refused"]:
        notes.append(
            f"{row['refused_in_time']} of {row['refused']} refusals within 50 ms, p99 {row['refusal_p99_ms']} ms"
        )
    if row["client_lag_p99_ms"] > LAG_MS:
        notes.append(f"the clients themselves were {row['client_lag_p99_ms']} ms late (p99): the machine was too busy")
    if row["broken_connections"]:
        notes.append(f"{row['broken_connections']} connections broke, and their clients asked once more")
    if row["cancelled"]:
        notes.append(f"{row['cancelled']} clients left")
    return notes


def _expectations(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("fault", "first success, s", "p99 back, s", "p99 during, ms", "because")
    lines = [
        [
            row["fault"],
            *(
                f"{row['expected'][name]:g} / {_figure(row[name], digits)}"
                for name, digits in (("first_success_s", 1), ("p99_back_s", 1), ("p99_during_ms", 0))
            ),
            row["expected"]["because"],
        ]
        for row in rows
    ]
    return "Expected before the first run / measured:\n\n" + _table(heads, lines)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in heads[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *lines))


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"

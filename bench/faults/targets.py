"""Checks a row of the fault bench against its targets. Works on the rows' plain data."""

from collections.abc import Mapping
from typing import Any, Final

GOODPUT_TARGET: Final = 0.95
REFUSED_WITHIN_MS: Final = 50.0


def misses(row: Mapping[str, Any]) -> list[str]:
    """The targets that `row` missed, one line each; none if all is well."""
    missed = [str(complaint) for complaint in row["complaints"]]
    late = row["refused"] - row["refused_in_time"]
    # One in a hundred: what is measured is a client's time on a machine that does everything else, too.
    if late * 100 > row["refused"]:
        missed.append(f"{late} of {row['refused']} refusals took more than {REFUSED_WITHIN_MS:.0f} ms")
    if (share := row.get("goodput_share")) is not None and share < GOODPUT_TARGET:
        missed.append(f"goodput {share:.0%} of the peak, target {GOODPUT_TARGET:.0%}")
    return missed


def zeros(row: Mapping[str, Any]) -> str:
    """How much the row's zeros say."""
    return f"none of {row['sent']} bounds a rate at {row['zero_bounds']:.2%}"

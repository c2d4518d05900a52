"""Breaks a running server and checks its requests: none may be lost, swapped, or fail needlessly.

Why: everything breaks some day, and promises about that need proof. This bench puts load that does not wait for
answers on a real local Ray Serve over real HTTP, breaks something meanwhile, and checks what the clients saw: every
request has exactly one end, every picture is its own request's (each is compared with a golden picture made
beforehand), and clients and server have counted the same.

Prints a card, the expectation and the findings of each row, and a table; the last line is one JSON document with
everything. Rows that were run at this commit before are taken from build/faults/. It exits with 1 when a target was
missed.

    python -m bench.faults
    python -m bench.faults --only sigkill-idle,nan --requests 1000
    python -m bench.faults --fresh --write           # runs all rows again, and puts the table into docs/reliability.md
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.card import card, print_card
from bench.clients.goldens import Goldens, make_goldens
from bench.faults import report
from bench.faults.cases import BY_NAME, NAMES_OF_ROWS, OVERLOAD_EXPECTED, OVERLOAD_FAULT
from bench.faults.runs import Servers, run_row
from bench.faults.targets import misses, zeros
from bench.options import names_of
from deployments.registry import known_models, with_known_size

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "build" / "faults"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    torch.set_num_threads(1)
    facts = card(torch.device("cpu"))
    print_card(facts)
    # Of a checkout with changes nobody can say what was measured.
    stale = options.fresh or str(facts["commit"]).endswith("+")
    known = {} if stale else _load_rows(options.results, facts["commit"], options.requests)
    goldens = demo_goldens()
    print(f"{'goldens':9} at least {goldens.nearest}/255 apart\n")
    with Servers(options.results) as servers:
        for name in options.only:
            if name not in known:
                _announce(name)
                row = run_row(name, servers, goldens, options.requests)
                known[name] = _save_row(row | {"card": facts, "asked": options.requests}, options.results)
            _print_row(known[name])
    rows = [known[name] for name in options.only]
    print("\n" + report.section(rows) + "\n")
    if options.write:
        report.write(PAGE, list(_load_rows(options.results, None, None).values()))
    print(json.dumps({"bench": "faults", "rows": rows}))
    return 1 if any(misses(row) for row in rows) else 0


def demo_goldens() -> Goldens:
    """Makes the golden pictures of the demo model, without its ControlNets."""
    return make_goldens(with_known_size(replace(known_models()["demo-sd"], controlnets={})))


def _announce(name: str) -> None:
    """Prints the expectation, before anything is measured."""
    known = BY_NAME.get(name)
    fault, expected = (known.fault, known.expected) if known else (OVERLOAD_FAULT, OVERLOAD_EXPECTED)
    print(f"{name:14} {fault}: first success within {expected.first_success_s:g} s is expected,")
    print(f"{'':14} p99 back after {expected.p99_back_s:g} s: {expected.because}", flush=True)


def _save_row(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Saves `row` as soon as it is measured."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{row['row']}.json").write_text(json.dumps(row, indent=1))
    return row


def _load_rows(folder: Path, commit: str | None, requests: int | None) -> dict[str, dict[str, Any]]:
    """Loads saved rows in the table's order: of `commit` with that many requests, or, for None, of any."""
    rows = {name: json.loads(file.read_text()) for name in NAMES_OF_ROWS if (file := folder / f"{name}.json").is_file()}
    return {
        name: row
        for name, row in rows.items()
        if (commit is None or row["card"]["commit"] == commit) and (requests is None or row["asked"] == requests)
    }


def _print_row(row: Mapping[str, Any]) -> None:
    figures = ("sent", "succeeded", "refused", "failed", "cancelled", "lost", "swapped", "broken_connections")
    print(f"{row['row']:14} " + ", ".join(f"{row[name]} {name.replace('_', ' ')}" for name in figures))
    timed = ("p99_before_ms", "p99_during_ms", "first_success_s", "p99_back_s", "client_lag_p99_ms")
    print(f"{'':14} " + ", ".join(f"{name} {row[name]}" for name in timed))
    print(f"{'':14} {zeros(row)}")
    for miss in misses(row):
        print(f"{'':14} MISSED: {miss}")
    print(flush=True)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description="What becomes of requests in faults.")
    parser.add_argument("--only", type=names_of(NAMES_OF_ROWS), default=NAMES_OF_ROWS, help=",".join(NAMES_OF_ROWS))
    parser.add_argument("--requests", type=int, default=150, help="requests a row (overload takes what it takes)")
    parser.add_argument("--fresh", action="store_true", help="run also what was run at this commit before")
    parser.add_argument("--write", action="store_true", help="put all results into docs/reliability.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results and logs are kept")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

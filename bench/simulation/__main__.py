"""Simulates how many GPUs a load needs, what they cost, and how well the load is served.

Why: nobody rents a thousand GPUs to find out which delay an autoscaler should have. The queue, the device's share
among shapes, padding, the knee and the policies are production's own code; time is simulated, from step costs that were
measured or modelled (`bench/simulation/devices.py` says which).

    validation   one trace on a real local Ray Serve and in the simulator; a quarter of an hour on an idle machine
    steady       a load that does not change, to see whether the fleet does
    classes      step-level batching and our policy against others, a day on each class of GPU
    fills        the two ways to batch, each with fleets from half full to full
    constants    the policy's settings, changed one after the other
    sizes        fleets for 1 to 1,000 GPUs' worth of work

Results are kept in build/simulation, by commit, so an interrupted run continues. The last line is one JSON document.
Exits with 1 if the simulator and reality differ by more than 15 %.

    python -m bench.simulation --only validation
    python -m bench.simulation --processes 2 --plots docs
"""

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

import torch

from bench.card import card, print_card
from bench.options import names_of
from bench.simulation.cases import STUDIES, Case
from bench.simulation.validation import validate

RESULTS: Final = Path(__file__).parents[2] / "build" / "simulation"
VALIDATION: Final = "validation"
NAMES: Final = (VALIDATION, *STUDIES)

Report = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    torch.set_num_threads(1)
    facts = card(torch.device("cpu"))
    print_card(facts)
    kept = Kept(RESULTS, facts["commit"])
    reports: dict[str, Any] = {}
    if VALIDATION in options.only:
        reports[VALIDATION] = kept.get(VALIDATION) or kept.put(VALIDATION, asyncio.run(validate(RESULTS)))
        _say_validation(reports[VALIDATION])
    for name in options.only:
        if name != VALIDATION:
            reports[name] = list(_play(STUDIES[name](), kept, options.processes))
            _say_study(name, reports[name])
    if options.plots is not None:
        # Only who plots needs it.
        from bench.simulation.plots import plot

        plot(reports, options.plots)
    print(json.dumps({"bench": "simulate", "card": facts, "reports": _without_series(reports)}))
    off = [side for side in reports.get(VALIDATION, {}).get("figures", {}).values() if not side["agrees"]]
    return 1 if off else 0


class Kept:
    """Reports on disk. Those of a checkout with changes are not taken up again: nobody can say what they are of."""

    def __init__(self, folder: Path, commit: str | None) -> None:
        self._folder = folder
        self._commit = commit

    def get(self, name: str) -> Report | None:
        file = self._folder / f"{name}.json"
        report: Report | None = json.loads(file.read_text()) if file.is_file() else None
        fresh = report is not None and self._commit and not self._commit.endswith("+")
        return report if fresh and report and report["commit"] == self._commit else None

    def put(self, name: str, report: Report) -> Report:
        self._folder.mkdir(parents=True, exist_ok=True)
        report = {"commit": self._commit, **report}
        (self._folder / f"{name}.json").write_text(json.dumps(report))
        return report


def _play(cases: Sequence[Case], kept: Kept, processes: int) -> Iterator[Report]:
    """In the order of `cases`, whichever is done first."""
    missing = [case for case in cases if kept.get(case.key) is None]
    done: dict[str, Report] = {}
    with ProcessPoolExecutor(processes) as pool:
        coming = {pool.submit(case.figures): case for case in missing}
        for number, future in enumerate(as_completed(coming), start=1):
            key = coming[future].key
            done[key] = kept.put(key, future.result())
            print(f"{number} of {len(missing)}: {key}", flush=True)
    for case in cases:
        report = done.get(case.key) or kept.get(case.key)
        assert report is not None
        yield report


def _say_validation(report: Report) -> None:
    print("calibrated  " + ", ".join(f"{name} {value}" for name, value in report["calibrated"].items()))
    for name, side in report["figures"].items():
        missed = "" if side["agrees"] else "   MISSED"
        print(f"{name:18} real {side['real']:.3f}, simulated {side['simulated']:.3f}, off {side['off']:+.1%}{missed}")
    print(flush=True)


def _say_study(name: str, reports: Sequence[Report]) -> None:
    print(f"{name}\n{'case':46} in time  refused  p50 s   p95 s  GPUs   wasted  $/1,000")
    for report in reports:
        print(
            f"{_title(report['case']):46} {report['attainment']:7.1%} {report['refused']:7.1%} {report['p50']:6.2f} "
            f"{report['p95']:7.2f} {report['gpus']:6.1f} {report['wasted']:7.1%} {report['cost_per_1000']:8.3f}"
        )
    print(flush=True)


def _title(case: Mapping[str, Any]) -> str:
    settings = " ".join(f"{name} {value:g}" for name, value in case["settings"].items())
    return (
        f"{case['gpus']:g} {case['gpu']}, {case['engine']}, {case['policy']}, seed {case['seed']} {settings}".rstrip()
    )


def _without_series(reports: Mapping[str, Any]) -> dict[str, Any]:
    """What changes over time is for plots."""
    series = ("samples", "load", "latencies", "replicas")
    return {
        name: {key: value for key, value in report.items() if key not in series}
        if isinstance(report, dict)
        else [{key: value for key, value in one.items() if key not in series} for one in report]
        for name, report in reports.items()
    }


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.simulation", description="Fleets under load, simulated.")
    parser.add_argument("--only", type=names_of(NAMES), default=NAMES, help="studies, with commas between")
    parser.add_argument("--processes", type=int, default=1, help="simulations at the same time")
    parser.add_argument("--plots", type=Path, help="the folder to draw the pictures into")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

"""Measures Darkroom against what people would run instead, over HTTP, with requests that wait for nobody.

One checkpoint, one machine, one contender at a time. The traffic mixes kinds, sizes, steps, samplers and guidance
(`traffic.py`), and is the same for all. Each contender gets one rate after the other, up to the one at which it serves
less than a third of the requests in time. Then two more rates narrow down the highest of which any peer serves half;
and Darkroom and the peer with the highest throughput get 70 % of that throughput, a load at which people run servers.

Before anything is measured, each contender makes a picture of each kind, which must be diffusers' own to within 2/255.

Prints a card and a line per run; the last line is one JSON document. What is measured is kept in build/online, so that
an interrupted run goes on where it was. Exits with 1 if a target was missed, 2 if a contender did not work.

    python -m bench.online                                       # all of it, 25 minutes
    python -m bench.online --quick                               # a look at every contender, three minutes
    python -m bench.online --only darkroom,genai --rates 1,2
    python -m bench.online --plots docs                          # draws what has been measured, too
"""

import argparse
import asyncio
import base64
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import torch
from PIL import Image

from bench.card import card, commit, print_card
from bench.online.contenders import CONTENDERS, DARKROOM, NAMES, ROOT, SCRATCH, Contender, DidNotStart, running
from bench.online.generator import Planned, Sample, fetch, send_all, tally
from bench.online.messages import Message, message_to_darkroom, message_to_peer
from bench.online.report import (
    COUNTS,
    GOODPUT_TARGET,
    LOAD,
    P95_TARGET,
    best_capacity,
    carried_by_peers,
    table,
    verdict,
)
from bench.online.results import Results, open_results
from bench.online.traffic import checked_requests, draw_traffic, warm_up_requests
from bench.online.unloaded import Unloaded, read_unloaded
from bench.options import names_of
from deployments.engine.protocol.request import Request

RATES: Final = (0.75, 1.5, 3.0, 5.0)
WINDOW_S: Final = 40.0
SEED: Final = 1

QUICK_RATES: Final = (1.0,)
QUICK_WINDOW_S: Final = 10.0

NEAR: Final = 2
"""A contender's picture may differ from diffusers' by so much, of 255, in any value."""

NARROWINGS: Final = 2
"""Rates that are tried between the highest of which a peer serves half, and the next."""

ENOUGH: Final = 1 / 3
"""A contender that serves less than this share in time gets no higher rate."""


class Bench:
    """One run over the contenders, and what has been measured."""

    def __init__(self, results: Results, window_s: float, seed: int) -> None:
        self._results = results
        self._window_s = window_s
        self._seed = seed
        facts = results.keep("unloaded", _measure_unloaded)
        self._unloaded: Unloaded = read_unloaded(facts)
        self._pictures = {kind: _pixels(base64.b64decode(png)) for kind, png in facts["pictures"].items()}

    def measure(self, contender: Contender, rates: Sequence[float], part: str = "run") -> None:
        """Measures `contender` at each of `rates`, until it serves too few. What has been measured is not repeated."""
        pending = list(rates)
        while pending := self._after_the_known(contender, pending, part):
            with running(contender) as url:
                self._warm_up_and_check(contender, url)
                for rate in list(pending):
                    run = self._run(contender, url, rate)
                    self._results.put(f"{part} {contender.name} {rate:g}", run)
                    _say(run)
                    # It may still work for callers who have left, so the next rate gets a new one.
                    if run["left"] or run["failed"]:
                        break
                    pending.remove(rate)

    def runs(self, part: str = "run") -> Iterator[Mapping[str, Any]]:
        """Yields what has been measured."""
        return (run for name, run in self._results.parts.items() if name.startswith(f"{part} "))

    def _after_the_known(self, contender: Contender, rates: Sequence[float], part: str) -> list[float]:
        """Returns those of `rates` that are still to be measured."""
        left: list[float] = []
        for rate in rates:
            run = self._results.parts.get(f"{part} {contender.name} {rate:g}")
            if run is None:
                left.append(rate)
            elif run["in_time"] < ENOUGH:
                return []
        return left

    def _warm_up_and_check(self, contender: Contender, url: str) -> None:
        for request in warm_up_requests():
            asyncio.run(fetch(url, self._message(contender, request, None)))
        differences: dict[str, int] = {}
        for kind, request in checked_requests().items():
            made = _pixels(asyncio.run(fetch(url, self._message(contender, request, None))))
            expected = self._pictures[kind]
            differences[kind] = int(np.abs(made - expected).max()) if made.shape == expected.shape else 255
        self._results.put(f"pictures {contender.name}", differences)
        print(f"{contender.name:12} differs from diffusers by {differences} of 255", flush=True)
        if max(differences.values()) > NEAR:
            raise DidNotStart(f"{contender.name} makes other pictures than diffusers")

    def _run(self, contender: Contender, url: str, rate: float) -> dict[str, Any]:
        traffic = draw_traffic(rate, self._window_s, self._seed)
        planned = []
        for arrival in traffic:
            deadline_s = self._unloaded.deadline_s(arrival.request)
            planned.append(Planned(arrival.at, deadline_s, self._message(contender, arrival.request, deadline_s)))
        load = os.getloadavg()[0]
        samples = asyncio.run(send_all(url, planned))
        facts = {"contender": contender.name, "rate": rate, "commit": commit(), "load_before": round(load, 2)}
        return facts | tally(samples, self._window_s) | {"samples": [_brief(sample) for sample in samples]}

    def _message(self, contender: Contender, request: Request, deadline_s: float | None) -> Message:
        return message_to_darkroom(request, deadline_s) if contender.own_api else message_to_peer(request)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    # As Ctrl-C does, and unlike a signal's own default: a server must not outlive the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rates = options.rates or (QUICK_RATES if options.quick else RATES)
    window_s = QUICK_WINDOW_S if options.quick else WINDOW_S
    torch.set_num_threads(os.cpu_count() or 1)
    facts = card(torch.device("cpu"))
    print_card(facts)
    settings = {"window_s": window_s, "seed": options.seed, "quick": options.quick}
    results = open_results(SCRATCH, options.out, facts, settings)
    results.put("card", facts)
    bench = Bench(results, window_s, options.seed)
    broken = _measure_all(bench, [one for one in CONTENDERS if one.name in options.only], rates, options.quick)
    return _report(bench, facts, broken, options.plots)


def _measure_all(bench: Bench, contenders: Sequence[Contender], rates: Sequence[float], quick: bool) -> dict[str, str]:
    """Measures all that work, and returns why the others do not."""
    broken: dict[str, str] = {}
    for contender in contenders:
        try:
            bench.measure(contender, rates)
        except (DidNotStart, httpx.HTTPError, subprocess.CalledProcessError) as error:
            broken[contender.name] = f"{type(error).__name__}: {error}"
            print(f"BROKEN    {contender.name}: {broken[contender.name]}", flush=True)
    if not quick:
        _measure_what_has_targets(bench, {one.name: one for one in contenders if one.name not in broken})
    return broken


def _measure_what_has_targets(bench: Bench, contenders: Mapping[str, Contender]) -> None:
    """Narrows down the highest rate of which a peer still serves half; and measures at 70 % of a peer's capacity."""
    for _ in range(NARROWINGS):
        match carried_by_peers(bench.runs()):
            case (peer, low, float(high)) if peer in contenders:
                bench.measure(contenders[peer], (round(math.sqrt(low * high), 2),))
    match carried_by_peers(bench.runs()):
        case (_, rate, _) if DARKROOM in contenders:
            bench.measure(contenders[DARKROOM], (rate,))
    match best_capacity(bench.runs()):
        case (peer, throughput) if {peer, DARKROOM} <= contenders.keys():
            for name in (DARKROOM, peer):
                bench.measure(contenders[name], (round(LOAD * throughput, 2),), part="load")


def _report(bench: Bench, facts: Mapping[str, Any], broken: Mapping[str, str], plots: Path | None) -> int:
    runs, at_load = list(bench.runs()), list(bench.runs("load"))
    found = verdict(runs, {run["contender"]: run for run in at_load})
    print("\n" + table(runs) + "\n\n" + table(at_load) + "\n")
    missed = []
    if found.get("goodput_ratio", GOODPUT_TARGET) < GOODPUT_TARGET:
        missed.append(f"goodput is {found['goodput_ratio']} times the best peer's, target {GOODPUT_TARGET}")
    if "p95_ratio" in found and (found["p95_ratio"] is None or found["p95_ratio"] > P95_TARGET):
        missed.append(f"p95 is {found['p95_ratio']} of the best peer's, target {P95_TARGET}")
    for line in missed:
        print(f"MISSED    {line}")
    if plots is not None:
        # Only who plots needs it.
        from bench.online.plots import plot

        plot(runs, plots)
    brief = [{name: value for name, value in run.items() if name != "samples"} for run in (*runs, *at_load)]
    print(json.dumps({"bench": "online", **facts, "runs": brief, **found, "missed": missed, "broken": broken}))
    return 2 if broken else int(bool(missed))


def _measure_unloaded() -> Any:
    """Runs `unloaded.py` in a process of its own, so that nothing of it is left when the load begins."""
    print(f"{'setup':9} what diffusers takes for each shape of request", flush=True)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    file = SCRATCH / "unloaded.json"
    subprocess.run([sys.executable, "-m", "bench.online.unloaded", str(file)], check=True, cwd=ROOT)
    return json.loads(file.read_text())


def _pixels(file: bytes) -> "np.ndarray[Any, np.dtype[np.int16]]":
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(np.int16)


def _brief(sample: Sample) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(sample).items()}


def _say(run: Mapping[str, Any]) -> None:
    times = ", ".join(f"p{percent} {run[f'p{percent}_s']} s" for percent in (50, 95))
    counts = ", ".join(f"{run[count]} {count}" for count in COUNTS)
    print(
        f"{run['contender']:12} {run['rate']:5g}/s: {run['in_time']:4.0%} in time, "
        f"goodput {run['goodput_per_s']:.2f}/s, "
        f"throughput {run['throughput_per_s']:.2f}/s, {times}, {counts}",
        flush=True,
    )


def _rates(text: str) -> tuple[float, ...]:
    return tuple(sorted(float(part) for part in text.split(",")))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.online", description="Darkroom against its peers.")
    parser.add_argument("--only", type=names_of(NAMES), default=NAMES, help="contenders, with commas between")
    parser.add_argument("--rates", type=_rates, help="requests a second, with commas between them")
    parser.add_argument("--quick", action="store_true", help="one rate for ten seconds, to see that all of them work")
    parser.add_argument("--seed", type=int, default=SEED, help="another one draws other traffic")
    parser.add_argument("--out", type=Path, help="the file that keeps what is measured")
    parser.add_argument("--plots", type=Path, help="the folder to draw the picture into")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

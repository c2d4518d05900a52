"""Computes what the engine's bench prints and puts into its JSON document."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from types import MappingProxyType
from typing import Any, Final

from bench.engine.contenders import Outcome, largest_difference
from bench.engine.forecast import COSTS, forecast
from bench.engine.workload import SAMPLERS, kind_of, like
from bench.timing import percentile
from deployments.engine.protocol.request import Request

TARGETS: Final[Mapping[str, float]] = MappingProxyType({"text": 4.5, "mixed": 4.0})
"""By workload, times one by one, with the engine's networks on OpenVINO. On torch it is 1.8 for both."""

ENGINE, ONE_BY_ONE, LIKE_BATCHES = "engine", "one_by_one", "like_batches"


def summary(
    runs: Mapping[str, Sequence[Outcome]], work: Sequence[Sequence[Request]], max_rows: int, workload: str
) -> dict[str, Any]:
    """Computes the numbers of the report. Ratios are medians of ratios within a repeat."""
    difference = _difference(runs, ONE_BY_ONE)
    return {
        "bench": "engine",
        "workload": {"name": workload} | _workload(work[0], max_rows),
        "contenders": {name: _figures(outcomes) for name, outcomes in runs.items()},
        "forecast": _forecast(work[0], max_rows, workload),
        "largest_difference": difference,
        "largest_difference_like_batches": _difference(runs, LIKE_BATCHES),
        "same_pictures": difference <= 1,
        "ratio_like_batches": _ratio(runs, LIKE_BATCHES),
        "ratio": _ratio(runs, ONE_BY_ONE),
        "target": TARGETS[workload],
    }


def print_workload(requests: Sequence[Request], controlnet: str | None) -> None:
    steps = [request.params.num_inference_steps for request in requests]
    guided = sum(request.params.guidance_scale > 1 for request in requests)
    kinds = ", ".join(f"{count} {kind}" for kind, count in _kinds(requests).items())
    print(
        f"{'workload':9} {len(requests)} requests at once ({kinds}), {min(steps)} to {max(steps)} steps, "
        f"{', '.join(SAMPLERS)}, {guided} of them guided, {len(like(requests))} groups of like requests"
    )
    print(f"{'control':9} {controlnet}\n" if controlnet else "")


def print_table(report: Mapping[str, Any]) -> None:
    heads = ("images/s", "p50 s", "p95 s", "UNet calls", "rows/call", "padded")
    print(f"\n{'contender':13}" + "".join(f"{head:>11}" for head in heads))
    for name, row in report["contenders"].items():
        figures = (row["images_per_second"], row["p50_s"], row["p95_s"], row["unet_calls"], row["mean_rows_per_call"])
        print(f"{name:13}" + "".join(f"{figure:11.7g}" for figure in figures) + f"{row['padded_share']:11.1%}")
    engine, expected = report["contenders"][ENGINE], report["forecast"]
    print(f"\n{'':24} {'forecast':>9} {'measured':>9}")
    for label, forecasted, measured in (
        ("ratio to one by one", expected["ratio"], report["ratio"]),
        ("ratio to like batches", expected["ratio_like_batches"], report["ratio_like_batches"]),
        ("UNet calls", expected["unet_calls"], engine["unet_calls"]),
        ("rows per call", expected["mean_rows_per_call"], engine["mean_rows_per_call"]),
    ):
        print(f"{label:24} {forecasted:9.2f} {measured:9.2f}")
    verdict = "the same" if report["same_pictures"] else "NOT the same"
    print(f"pictures are {verdict}: largest difference {report['largest_difference']}/255")
    print(f"target ratio {report['target']}\n")


def _difference(runs: Mapping[str, Sequence[Outcome]], name: str) -> int:
    return max(largest_difference(ours, theirs) for ours, theirs in zip(runs[ENGINE], runs[name], strict=True))


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    latencies = [[percentile(outcome.latencies, percent) for outcome in outcomes] for percent in (50, 95)]
    seconds = [outcome.seconds for outcome in outcomes]
    first = outcomes[0]
    return {
        "images_per_second": round(len(first.latencies) / median(seconds), 4),
        "p50_s": round(median(latencies[0]), 3),
        "p95_s": round(median(latencies[1]), 3),
        "unet_calls": first.unet_calls,
        "unet_rows": first.unet_rows,
        "mean_rows_per_call": round(first.unet_rows / first.unet_calls, 2),
        "padded_share": round(1 - first.unet_rows / first.computed_rows, 4),
        "seconds": [round(value, 3) for value in seconds],
    }


def _ratio(runs: Mapping[str, Sequence[Outcome]], name: str) -> float:
    pairs = zip(runs[ENGINE], runs[name], strict=True)
    return round(median(theirs.seconds / ours.seconds for ours, theirs in pairs), 3)


def _forecast(requests: Sequence[Request], max_rows: int, workload: str) -> dict[str, Any]:
    expected = forecast(requests, max_rows, COSTS[workload])
    return {
        "ratio": round(expected.one_by_one / expected.engine, 3),
        "ratio_like_batches": round(expected.like_batches / expected.engine, 3),
        "unet_calls": expected.unet_calls,
        "mean_rows_per_call": round(expected.mean_rows, 2),
        "control_calls": expected.control_calls,
        "network_seconds": {
            ENGINE: round(expected.engine, 3),
            ONE_BY_ONE: round(expected.one_by_one, 3),
            LIKE_BATCHES: round(expected.like_batches, 3),
        },
    }


def _workload(requests: Sequence[Request], max_rows: int) -> dict[str, Any]:
    params = [request.params for request in requests]
    return {
        "requests": len(requests),
        "kinds": _kinds(requests),
        "steps": sorted({one.num_inference_steps for one in params}),
        "samplers": sorted({str(one.sampler) for one in params}),
        "guidance": sorted({one.guidance_scale for one in params}),
        "size": params[0].width,
        "like_groups": len(like(requests)),
        "max_rows": max_rows,
    }


def _kinds(requests: Sequence[Request]) -> dict[str, int]:
    return dict(sorted(Counter(map(kind_of, requests)).items()))

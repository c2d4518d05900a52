"""How much faster is step-level batching than diffusers' own pipeline, for the same pictures on the same machine?

Why: requests of strangers are not alike, so whole-request batching finds little to batch. The engine lets any row
share a UNet call with any other. This bench sends 16 mixed requests (steps 10 to 40, four samplers, guidance 1 and 7.5)
to the engine, to the pipeline called one by one, and to the pipeline called in batches of like requests; it checks that
the pictures are the same, so that the ratio is about the same work. With `--workload mixed` it is 20 requests of every
kind, for diffusers' four pipelines: text-to-image, image-to-image, inpainting on a 4-channel model, canny ControlNet.

Prints a card (hardware, versions, commit), a line per run, a table, the forecast beside the measurement; the last line
is one JSON document with everything. It exits with 1 when the pictures differ: then the ratio means nothing.

    python -m bench.engine
    python -m bench.engine --workload mixed
    python -m bench.engine --model path/to/checkpoint --repeats 5 --threads 2
    python -m bench.engine --requests 4 --steps 3,5 --repeats 1        # a quick look
    python -m bench.engine --size sd15                                 # SD1.5's own size, needs CUDA; see sd15.py
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
import transformers

from bench.card import card, print_card
from bench.checkpoints import write_controlnet
from bench.contenders import Outcome, Pipeline, largest_difference, serve_with_engine
from bench.forecast import forecast
from bench.timing import percentile
from bench.workload import GUIDANCE, SAMPLERS, STEPS, like, mixed, of_all_kinds
from deployments.engine.models import LoadedModel, load_model
from deployments.engine.row import Request
from deployments.engine.spec import ModelSpec

FAMILY = Path(__file__).parents[1] / "deployments" / "demo_models"
DEMO = FAMILY / "demo-sd"
WORKLOADS: Mapping[str, tuple[Callable[..., list[Request]], int]] = {"text": (mixed, 16), "mixed": (of_all_kinds, 20)}
TARGET = 1.8

ENGINE, ONE_BY_ONE, LIKE_BATCHES = "engine", "one_by_one", "like_batches"
Contenders = Mapping[str, Callable[[Sequence[Request]], Outcome]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    torch.set_num_threads(options.threads)
    _quiet()
    if options.size == "sd15":
        from bench import sd15  # its imports are of no use to the demo bench

        return sd15.main(options)
    if not options.model.is_dir():
        print(f"there is no checkpoint in {options.model.name}/: train the demo model, or name one with --model FOLDER")
        return 2
    report = measure(options)
    print(json.dumps(report))
    return 0 if report["same_pictures"] else 1


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything and returns the JSON document."""
    device = torch.device("cpu")
    facts = card(device)
    print_card(facts)
    with TemporaryDirectory() as folder:
        model = load_model(_spec(options, Path(folder)), device, torch.float32)
        work = [_requests(model, options, repeat) for repeat in range(options.repeats + 1)]
        print(_describe(work[0]))
        runs = compare(_contenders(options, model), work)
    loads = {"load_after": round(os.getloadavg()[0], 2)}
    report = facts | loads | summary(runs, work[1:], options.max_rows)
    print_table(report)
    return report


def _spec(options: argparse.Namespace, folder: Path) -> ModelSpec:
    """The model to measure. Where it has no trained ControlNet, one with random weights is made: it is as fast."""
    if options.workload == "text":
        return ModelSpec("bench", str(options.model))
    trained = FAMILY / "controlnet-canny"
    if options.model == DEMO and trained.is_dir():
        return ModelSpec("bench", str(options.model), controlnets={"canny": str(trained)})
    print("ControlNet: random weights, made from this model's UNet")
    write_controlnet(options.model / "unet", folder)
    return ModelSpec("bench", str(options.model), controlnets={"canny": str(folder)})


def compare(contenders: Contenders, work: Sequence[Sequence[Request]]) -> dict[str, list[Outcome]]:
    """Every contender serves every list of requests; the first list warms up and is dropped.

    They take turns, each time in another order, so that a busy neighbour on the machine bothers all of them.
    """
    runs: dict[str, list[Outcome]] = {name: [] for name in contenders}
    for repeat, requests in enumerate(work):
        names = list(contenders)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            outcome = contenders[name](requests)
            runs[name].append(outcome)
            print(f"{'warm-up' if repeat == 0 else f'run {repeat}':8} {name:13} {outcome.seconds:8.2f} s", flush=True)
    return {name: outcomes[1:] for name, outcomes in runs.items()}


def summary(runs: Mapping[str, Sequence[Outcome]], work: Sequence[Sequence[Request]], max_rows: int) -> dict[str, Any]:
    """The numbers of the report. Ratios are medians of ratios within a repeat."""
    pairs = {name: zip(runs[ENGINE], runs[name], strict=True) for name in (ONE_BY_ONE, LIKE_BATCHES)}
    difference = max(largest_difference(ours, theirs) for ours, theirs in pairs[ONE_BY_ONE])
    return {
        "bench": "engine",
        "workload": _workload(work[0], max_rows),
        "contenders": {name: _figures(outcomes) for name, outcomes in runs.items()},
        "forecast": _forecast(work[0], max_rows),
        "largest_difference": difference,
        "same_pictures": difference <= 1,
        "ratio_like_batches": _ratio(runs, LIKE_BATCHES),
        "ratio": _ratio(runs, ONE_BY_ONE),
        "target": TARGET,
    }


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
    print(f"pictures are {verdict}: largest difference {report['largest_difference']}/255; target ratio {TARGET}\n")


def _contenders(options: argparse.Namespace, model: LoadedModel) -> Contenders:
    pipeline = Pipeline(options.model, model)
    return {
        ENGINE: lambda requests: serve_with_engine(model, requests, max_rows=options.max_rows),
        ONE_BY_ONE: pipeline.one_by_one,
        LIKE_BATCHES: pipeline.in_like_batches,
    }


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


def _forecast(requests: Sequence[Request], max_rows: int) -> dict[str, Any]:
    expected = forecast(requests, max_rows)
    return {
        "ratio": round(expected.one_by_one / expected.engine, 3),
        "ratio_like_batches": round(expected.like_batches / expected.engine, 3),
        "unet_calls": expected.unet_calls,
        "mean_rows_per_call": round(expected.mean_rows, 2),
        "unet_seconds": {
            ENGINE: round(expected.engine, 3),
            ONE_BY_ONE: round(expected.one_by_one, 3),
            LIKE_BATCHES: round(expected.like_batches, 3),
        },
    }


def _workload(requests: Sequence[Request], max_rows: int) -> dict[str, Any]:
    params = [request.params for request in requests]
    return {
        "requests": len(requests),
        "kinds": dict(sorted(Counter(_kind(request) for request in requests).items())),
        "steps": sorted({one.num_inference_steps for one in params}),
        "samplers": sorted({str(one.sampler) for one in params}),
        "guidance": sorted({one.guidance_scale for one in params}),
        "size": params[0].width,
        "like_groups": len(like(requests)),
        "max_rows": max_rows,
    }


def _kind(request: Request) -> str:
    return "controlnet" if request.params.controls else request.inputs.task


def _describe(requests: Sequence[Request]) -> str:
    steps = [request.params.num_inference_steps for request in requests]
    guided = sum(request.params.guidance_scale > 1 for request in requests)
    return (
        f"{'workload':9} {len(requests)} requests at once, {min(steps)} to {max(steps)} steps, {', '.join(SAMPLERS)}, "
        f"{guided} of them guided, {len(like(requests))} groups of like requests\n"
        f"{'kinds':9} {', '.join(f'{n} {kind}' for kind, n in Counter(map(_kind, requests)).items())}\n"
    )


def _requests(model: LoadedModel, options: argparse.Namespace, repeat: int) -> list[Request]:
    make, count = WORKLOADS[options.workload]
    return make(
        model.spec,
        options.requests or count,
        repeat,
        steps=options.steps,
        guidance=options.guidance,
        size=options.pixels,
    )


def _quiet() -> None:
    """No progress bars of libraries between the lines of the report."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _numbers(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(kind(part) for part in text.split(","))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description="The engine against diffusers.")
    parser.add_argument("--size", choices=("demo", "sd15"), default="demo", help="which network to measure")
    parser.add_argument("--model", type=Path, default=DEMO, help="demo: a folder in diffusers' layout")
    parser.add_argument("--pixels", type=int, default=None, help="demo: picture side; the model's own by default")
    parser.add_argument("--workload", choices=tuple(WORKLOADS), default="text", help="demo: which requests")
    parser.add_argument("--requests", type=int, default=None, help="how many; 16 of text, 20 of every kind")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=_numbers(int), default=STEPS, help="demo: step counts that are dealt")
    parser.add_argument("--guidance", type=_numbers(float), default=GUIDANCE, help="demo: scales that are dealt")
    parser.add_argument("--max-rows", type=int, default=16, help="UNet rows of one call of the engine, at most")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads, for every contender")
    parser.add_argument("--budget", type=float, default=540.0, help="sd15: seconds for all parts together")
    parser.add_argument("--parts", type=_numbers(str), default=None, help="sd15: only these parts, in this order")
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)  # sd15 on the CPU, tiny shapes
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

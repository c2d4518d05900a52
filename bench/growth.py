"""Measures what Darkroom's engine costs as the work grows: requests that wait, models on one replica, pixels.

    queue    1 to 10,000 waiting requests, on a UNet that answers at once: what a step takes beside the networks
    models   1 to 32 models, the demo model under as many names: the same work, spread over more of them
    sizes    64 to 1,024 pixels a side

The engine is called directly. Prints a card and a line per run; the last line is one JSON document. Exits with 1 if a
step's own time grows with the queue.

    python -m bench.growth
    python -m bench.growth --only queue
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from bench.card import card, print_card, silence_libraries
from bench.checkpoints import TINY, write_checkpoint
from bench.engine.contenders import serve_with_engine
from bench.engine.workload import text
from bench.options import names_of
from bench.timing import percentile
from deployments.engine.engine import Engine
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.registry import known_models

LENGTHS: Final = (1, 10, 100, 1_000, 10_000)
MODELS: Final = (1, 2, 4, 8, 16, 32)
SIDES: Final = (64, 128, 256, 512, 1024)

STEPS_MEASURED: Final = 300
GROWS_BY: Final = 1.5
"""A step beside the longest queue may take so many times what it takes beside a hundred, which fill all places."""

FULL: Final = 100
ROOM_FOR_ONE_TENANT: Final = 4 / 3
"""One tenant alone gets three quarters of a queue."""

FORECAST: Final = {
    "queue": "the same from 100 requests on: the queue is kept in heaps, and 64 requests are foreseen",
    "models": "half the throughput from 8 models on: each call has the rows of one model, so they are nearly empty",
    "sizes": "a quarter of the throughput for twice the side, below that only for 64 pixels, where calls cost the most",
}

CPU: Final = torch.device("cpu")


def measure_queue() -> Iterator[dict[str, Any]]:
    """Yields what submitting a request and a step take beside the networks, for each length of the queue."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(TINY, Path(folder), CPU, torch.float32)
        model = load_model(ModelSpec("tiny", folder), CPU, torch.float32)
        model.unet.forward = _answer_at_once
        for length in LENGTHS:
            yield {"waiting": length, **_steps_beside(model, length)}


def _answer_at_once(sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
    """A UNet without work: its answer is as large as a real one's."""
    return (torch.zeros_like(sample),)


def _steps_beside(model: LoadedModel, length: int) -> dict[str, float]:
    config = EngineConfig(device="cpu", dtype="float32", queue_limit=int(length * ROOM_FOR_ONE_TENANT) + 2)
    engine = Engine([model], lambda _event: None, config)
    try:
        # A step that no request ends is compared with its like.
        requests = text(model.spec, length, steps=(150,), size=64)
        started = time.perf_counter()
        for request in requests:
            engine.submit(request)
        submitting = time.perf_counter() - started
        for _ in range(20):
            engine.step()
        steps: list[float] = []
        while len(steps) < STEPS_MEASURED:
            started = time.perf_counter()
            if not engine.step():
                break
            steps.append((time.perf_counter() - started) * 1000)
    finally:
        engine.close()
    return {
        "submit_us": round(submitting / length * 1e6, 1),
        "step_ms": round(median(steps), 3),
        "step_p95_ms": round(percentile(steps, 95), 3),
        "step_most_ms": round(max(steps), 3),
    }


def measure_models(requests: int = 32) -> Iterator[dict[str, Any]]:
    """Yields throughput and p95 of the same requests, spread over more and more models."""
    spec = known_models()["demo-sd"]
    models: list[LoadedModel] = []
    for count in MODELS:
        while len(models) < count:
            models.append(load_model(replace(spec, name=f"model-{len(models)}"), CPU, torch.float32))
        work = [
            replace(one, params=one.params.model_copy(update={"model_name": f"model-{index % count}"}))
            for index, one in enumerate(text(models[0].spec, requests, steps=(10, 20), size=128))
        ]
        yield {"models": count, **_serve(models, work)}


def measure_sizes(requests: int = 4) -> Iterator[dict[str, Any]]:
    """Yields throughput and p95 of requests of one size each."""
    model = load_model(replace(known_models()["demo-sd"], max_pixels=max(SIDES) ** 2), CPU, torch.float32)
    for side in SIDES:
        yield {"side": side, **_serve([model], text(model.spec, requests, steps=(10,), guidance=(7.5,), size=side))}


def _serve(models: Sequence[LoadedModel], requests: Sequence[Request]) -> dict[str, Any]:
    """Serves all requests at once. The first round warms up."""
    for _ in range(2):
        outcome = serve_with_engine(models, requests, device="cpu", dtype="float32")
    return {
        "requests": len(requests),
        "images_per_s": round(len(requests) / outcome.seconds, 3),
        "p95_s": round(percentile(list(outcome.latencies), 95), 3),
        "rows_per_call": round(outcome.unet_rows / outcome.unet_calls, 2),
    }


PARTS: Final[dict[str, Callable[[], Iterator[dict[str, Any]]]]] = {
    "queue": measure_queue,
    "models": measure_models,
    "sizes": measure_sizes,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    torch.set_num_threads(os.cpu_count() or 1)
    silence_libraries()
    facts = card(CPU)
    print_card(facts)
    report: dict[str, Any] = {}
    for name in options.only:
        print(f"{name:9} forecast: {FORECAST[name]}", flush=True)
        report[name] = []
        for run in PARTS[name]():
            report[name].append(run)
            print(f"{'':9} " + ", ".join(f"{key} {value}" for key, value in run.items()), flush=True)
    missed = misses(report)
    for line in missed:
        print(f"MISSED    {line}")
    print(json.dumps({"bench": "growth", **facts, **report, "missed": missed}))
    return 1 if missed else 0


def misses(report: dict[str, Any]) -> list[str]:
    """Returns the targets that were missed, one line each."""
    steps = {run["waiting"]: run["step_ms"] for run in report.get("queue", ())}
    if not steps or steps[max(LENGTHS)] <= GROWS_BY * steps[FULL]:
        return []
    return [f"a step takes {steps[max(LENGTHS)]} ms beside {max(LENGTHS)} requests and {steps[FULL]} beside {FULL}"]


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description="What the engine costs as work grows.")
    parser.add_argument("--only", type=names_of(PARTS), default=tuple(PARTS), help="parts, with commas between")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

"""Measures a model's networks on a CPU with torch and with OpenVINO: UNet calls of several sizes, and decoding.

Why: the embedded default runs on CPUs, and nearly all of its time is spent in the UNet. Both run the same weights in
fp32 on the same number of threads, and take turns call by call, so that a busy neighbour bothers both. `one image` is
a whole request in an engine that has nothing else to do.

Prints a card, a table of medians in milliseconds, and as the last line one JSON document.

    python -m bench.backends
    python -m bench.backends --rows 1,2 --sides 32 --repeats 5
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.card import card, print_card, silence_libraries
from bench.engine.contenders import serve_with_engine
from deployments.engine.models.attention import sample_inputs
from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.openvino.runtime import OpenVinoRuntime
from deployments.engine.protocol.params import GenerationParams, effective_params
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec

DEMO = Path(__file__).parents[1] / "deployments" / "demo_models" / "demo-sd"
CPU = torch.device("cpu")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    torch.set_num_threads(options.threads)
    silence_libraries()
    facts = card(CPU)
    print_card(facts)
    spec = ModelSpec("bench", str(options.model))
    models = {
        "torch": load_model(spec, CPU, torch.float32),
        "openvino": load_model(
            spec, CPU, torch.float32, Components(CPU, torch.float32, openvino=OpenVinoRuntime(options.threads))
        ),
    }
    rows = []
    for name, calls in _measurements(models, options):
        milliseconds = {backend: round(each, 2) for backend, each in take_turns(calls, options.repeats).items()}
        rows.append({"what": name} | milliseconds)
        ratio = milliseconds["torch"] / milliseconds["openvino"]
        print(f"{name:28}" + "".join(f"{each:10.1f}" for each in milliseconds.values()) + f"{ratio:8.2f}x", flush=True)
    print(json.dumps(facts | {"load_after": round(os.getloadavg()[0], 2), "milliseconds": rows}))
    return 0


def take_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Returns the median milliseconds of each call; the first of each, which compiles, does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            with torch.inference_mode():
                call()
            times[name].append((time.perf_counter() - started) * 1000)
    return {name: median(each[1:]) for name, each in times.items()}


def _measurements(
    models: dict[str, LoadedModel], options: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    for side in options.sides:
        for rows in options.rows:
            yield f"UNet, {rows} x {side} x {side}", {n: _unet_call(m, rows, side) for n, m in models.items()}
        yield f"decoding, 1 x {side} x {side}", {n: _decode_call(m, side) for n, m in models.items()}
    for side, steps in ((256, 20), (512, 50)):
        name = f"one image, {side} x {side}, {steps} steps"
        yield name, {n: _image_call(m, side, steps) for n, m in models.items()}


def _unet_call(model: LoadedModel, rows: int, side: int) -> Callable[[], object]:
    inputs = sample_inputs(model.unet, rows, CPU, torch.float32)
    inputs["sample"] = torch.randn(rows, inputs["sample"].shape[1], side, side)
    return lambda: model.unet(**inputs)


def _decode_call(model: LoadedModel, side: int) -> Callable[[], object]:
    latents = torch.randn(1, model.channels, side, side)
    return lambda: model.vae.decode(latents, return_dict=False)


def _image_call(model: LoadedModel, side: int, steps: int) -> Callable[[], object]:
    asked: dict[str, Any] = {"prompt": "a red circle", "seed": 1, "width": side, "height": side}
    params = effective_params(GenerationParams(**asked, num_inference_steps=steps), model.spec, "text-to-image")
    return lambda: serve_with_engine([model], [Request("one", params)])


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.backends", description="torch against OpenVINO on a CPU.")
    parser.add_argument("--model", type=Path, default=DEMO, help="a folder in diffusers' layout")
    parser.add_argument("--rows", type=_numbers, default=(1, 2, 4, 8, 16))
    parser.add_argument("--sides", type=_numbers, default=(32, 64), help="sides of the latents")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for both")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

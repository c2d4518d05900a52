"""Measures how much faster step-level batching is than diffusers' own pipelines, for the same pictures.

Why: requests of different callers are not alike, so whole-request batching finds little to batch. The engine lets any
row share a UNet call with any other. This bench sends many requests at once (steps 10 to 40, four samplers, guidance 1
and 7.5) to the engine, to the pipelines called one by one, and to the pipelines called in batches of like requests; it
checks that the pictures are the same, so that the ratio is about the same work. The workload `text` is 16 requests for
text-to-image; `mixed` is 20: 40 % text-to-image, 20 % each image-to-image, inpainting by blending, and ControlNet.

Prints a card (hardware, versions, commit), a line per run, a table, the forecast beside the measurement; the last line
is one JSON document with everything. It exits with 1 if the pictures differ, because then the ratio means nothing.

    python -m bench.engine
    python -m bench.engine --workload mixed
    python -m bench.engine --backend torch
    python -m bench.engine --model path/to/checkpoint --repeats 5 --threads 2
    python -m bench.engine --requests 4 --steps 3,5 --repeats 1        # a quick look
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.card import card, print_card, silence_libraries
from bench.checkpoints import write_controlnet
from bench.engine.contenders import Outcome, Pipelines, serve_with_engine
from bench.engine.report import ENGINE, LIKE_BATCHES, ONE_BY_ONE, print_table, print_workload, summary
from bench.engine.workload import CONTROL, GUIDANCE, STEPS, WORKLOADS
from deployments.engine.models.backend_choice import start_openvino
from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.engine_config import BACKENDS, EngineConfig
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec

DEMO = Path(__file__).parents[2] / "deployments" / "demo_models" / "demo-sd"
DEMO_CONTROLNET = DEMO.parent / f"controlnet-{CONTROL}"
RANDOM = "random weights"

Contenders = Mapping[str, Callable[[Sequence[Request]], Outcome]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    torch.set_num_threads(options.threads)
    silence_libraries()
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
    with tempfile.TemporaryDirectory() as scratch:
        controlnet = _controlnet(options, Path(scratch))
        nets = {CONTROL: str(controlnet)} if controlnet else {}
        parts = Components(device, torch.float32, openvino=start_openvino(_settings(options), device, torch.float32))
        model = load_model(ModelSpec("bench", str(options.model), controlnets=nets), device, torch.float32, parts)
        work = [_requests(model, options, repeat) for repeat in range(options.repeats + 1)]
        print_workload(work[0], _named(controlnet))
        runs = compare(_contenders(options, model), work)
    facts |= {"backend": model.backend, "load_after": round(os.getloadavg()[0], 2), "controlnet": _named(controlnet)}
    report = facts | summary(runs, work[1:], options.max_rows, options.workload)
    print_table(report)
    return report


def compare(contenders: Contenders, work: Sequence[Sequence[Request]]) -> dict[str, list[Outcome]]:
    """Has every contender serve every list of requests; the first list warms up and is dropped.

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


def _settings(options: argparse.Namespace) -> EngineConfig:
    return EngineConfig(backend=options.backend, threads=options.threads)


def _contenders(options: argparse.Namespace, model: LoadedModel) -> Contenders:
    pipelines = Pipelines(options.model, model)
    return {
        ENGINE: lambda requests: serve_with_engine([model], requests, max_rows=options.max_rows),
        ONE_BY_ONE: pipelines.one_by_one,
        LIKE_BATCHES: pipelines.in_like_batches,
    }


def _requests(model: LoadedModel, options: argparse.Namespace, repeat: int) -> list[Request]:
    count = {} if options.requests is None else {"count": options.requests}
    return WORKLOADS[options.workload](
        model.spec, repeat=repeat, steps=options.steps, guidance=options.guidance, size=options.pixels, **count
    )


def _controlnet(options: argparse.Namespace, scratch: Path) -> Path | None:
    """Returns the workload's ControlNet folder, if it needs one: the demo model's own, or one made in `scratch`."""
    if options.workload == "text":
        return None
    if options.model == DEMO and DEMO_CONTROLNET.is_dir():
        return DEMO_CONTROLNET
    write_controlnet(options.model, scratch, torch.float32)
    return scratch


def _named(controlnet: Path | None) -> str | None:
    if controlnet is None:
        return None
    return controlnet.name if controlnet == DEMO_CONTROLNET else RANDOM


def _numbers(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(kind(part) for part in text.split(","))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description="The engine against diffusers.")
    parser.add_argument("--workload", choices=tuple(WORKLOADS), default="text", help="what is asked for")
    parser.add_argument("--model", type=Path, default=DEMO, help="a folder in diffusers' layout")
    parser.add_argument("--pixels", type=int, default=None, help="picture side; the model's own by default")
    parser.add_argument("--requests", type=int, default=None, help="16 in text, 20 in mixed by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=_numbers(int), default=STEPS, help="step counts that are dealt")
    parser.add_argument("--guidance", type=_numbers(float), default=GUIDANCE, help="scales that are dealt")
    parser.add_argument("--max-rows", type=int, default=16, help="UNet rows of one call of the engine, at most")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs the engine's networks")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for every contender")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

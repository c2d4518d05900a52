"""Measures where a GPU's time goes at Stable Diffusion 1.5's size, and how near the engine is to the ceiling.

It builds SD1.5's architecture with random weights in fp16 and measures, part by part: the matmul ceiling; the UNet and
the engine's whole step at 2 to 32 rows; images per second of the engine at 20 and 50 steps, of diffusers' pipeline
(eager, and compiled at batch 1 and 8), and of steps shared by one sampler and guidance alone; the VAE; every attention
kernel; whether neighbours change a row's bits; the UNet compiled and replayed as CUDA graphs; requests of every kind.
The engine runs with the server's own settings. The forecasts were written before the first measurement.

Each part has a time limit and fails alone; its result is printed as soon as it is measured, as a line of JSON, too. The
last line is one JSON document: a part that failed, or that the budget had no time for, is null there, and `reasons`
says why. It exits with 1 if a gate is not passed (`bench/gpu/gates.py`), and without a CUDA device with 0, saying so.

    python -m bench.gpu                                 # everything that fits in eight minutes
    python -m bench.gpu --parts gemm,ticks,engine       # only these
    python -m bench.gpu --workload mixed                # only the part with requests of every kind
    python -m bench.gpu --budget 1800                   # more time for compiling
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from bench.card import card, print_card, silence_libraries
from bench.checkpoints import SD15, TINY, Architecture, write_checkpoint
from bench.gpu.gates import judge
from bench.gpu.meters import Subject
from bench.gpu.parts import MIXED, PARTS, Part
from bench.timing import time_boxed
from deployments.engine.cuda.networks import Backend, inductor_options
from deployments.engine.models.loaded_model import load_model
from deployments.engine.protocol.spec import ModelSpec

NO_CUDA = "no CUDA device"

WHEELS: Final = (
    "accelerate",
    "annotated-types",
    "cachetools",
    "certifi",
    "charset-normalizer",
    "diffusers",
    "importlib-metadata",
    "opencv-python-headless",
    "pillow",
    "psutil",
    "pydantic",
    "pydantic-core",
    "requests",
    "scipy",
    "typing-inspection",
    "urllib3",
    "zipp",
)
"""What the bench needs beyond torch with CUDA and transformers, and what these bring."""

HELP: Final = f"""A machine that has torch with CUDA and transformers, and no package index, needs these wheels besides:
{", ".join(WHEELS)}.
Fetch them elsewhere, for Python 3.12 and torch 2.11, say, with
  pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels -c constraints.txt NAMES
and install them with
  pip install --no-deps --no-index wheels/*.whl"""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where and on what the parts run: the real thing, or a rehearsal on the CPU."""

    device: torch.device
    dtype: torch.dtype
    architecture: Architecture
    rows: tuple[int, ...]
    steps: tuple[int, ...]
    images: int
    gemm_size: int
    compiled: Callable[[Any], Any]
    backend: Backend


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    torch.set_num_threads(options.threads)
    silence_libraries()
    if not options.rehearse and not torch.cuda.is_available():
        print(f"{NO_CUDA}: this part of the bench measures SD1.5's size on a GPU, and there is none here")
        print(json.dumps({"bench": "sd15", "parts": None, "reasons": {"all": NO_CUDA}}))
        return 0
    unknown = sorted(set(options.parts or ()) - set(PARTS))
    if unknown:
        print(f"no such part: {', '.join(unknown)}; parts: {', '.join(PARTS)}")
        return 2
    stage = rehearsal() if options.rehearse else on_cuda()
    facts = card(stage.device)
    print_card(facts)
    everything = (MIXED,) if options.workload == "mixed" else PARTS
    chosen = {name: PARTS[name] for name in options.parts or everything}
    with tempfile.TemporaryDirectory() as folder:
        document = {"bench": "sd15", "architecture": stage.architecture.name} | facts
        document |= run_parts(partial(build, stage, Path(folder)), chosen, options.budget)
    gates = {} if options.rehearse else judge(document["parts"])
    print(json.dumps(document | {"gates": gates}), flush=True)
    return int(not all(gate["passed"] for gate in gates.values()))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="The engine at SD1.5's own size, on a GPU.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workload", choices=("text", "mixed"), default="text", help="mixed: only the part of that name"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads on the CPU")
    parser.add_argument("--budget", type=float, default=460.0, help="seconds for all parts together")
    parser.add_argument("--parts", type=lambda names: names.split(","), default=None, help="only these, in this order")
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)  # on the CPU, tiny shapes
    return parser


def run_parts(build: Callable[[], Subject], parts: dict[str, Part], budget: float) -> dict[str, Any]:
    """Runs each part in its box. Whatever goes wrong becomes a null and a reason."""
    ends = time.monotonic() + budget
    results: dict[str, Any] = dict.fromkeys(parts)
    reasons: dict[str, str] = {}
    try:
        subject = _boxed(build, budget)
    except Exception as error:
        return {"parts": results, "reasons": {"all": _why(error)}, "seconds": {}}
    seconds: dict[str, float] = {}
    for name, part in parts.items():
        started = time.monotonic()
        try:
            results[name] = _boxed(partial(part.measure, subject), min(part.seconds, ends - started))
        except Exception as error:
            reasons[name] = _why(error)
        seconds[name] = round(time.monotonic() - started, 1)
        _print_part(name, results[name], reasons.get(name), seconds[name])
        subject.tidy()
    return {"parts": results, "reasons": reasons, "seconds": seconds}


def on_cuda() -> Stage:
    # What mode="reduce-overhead" means, with an option that modes leave no room for.
    options = {"triton.cudagraphs": True} | inductor_options()
    compiled = partial(torch.compile, fullgraph=True, dynamic=False, options=options)
    return Stage(
        torch.device("cuda"), torch.float16, SD15, (2, 4, 8, 16, 32), (20, 50), 32, 8192, compiled, backend="inductor"
    )


def rehearsal() -> Stage:
    """Tiny shapes on the CPU, traced but not compiled: tells whether the parts run, and nothing about speed."""
    compiled = partial(torch.compile, backend="eager", dynamic=False)
    return Stage(
        torch.device("cpu"), torch.float32, TINY, (2, 4), (2, 3), 4, 64, compiled, backend=lambda graph, _, **__: graph
    )


def build(stage: Stage, folder: Path) -> Subject:
    """Writes the checkpoint, and loads it as the engine would load any other."""
    write_checkpoint(stage.architecture, folder, stage.device, stage.dtype)
    model = load_model(ModelSpec(stage.architecture.name, str(folder)), stage.device, stage.dtype)
    return Subject(
        model=model,
        folder=folder,
        architecture=stage.architecture,
        rows=stage.rows,
        steps=stage.steps,
        images=stage.images,
        gemm_size=stage.gemm_size,
        compiled=stage.compiled,
        backend=stage.backend,
    )


def _boxed(call: Callable[[], Any], seconds: float) -> Any:
    if seconds <= 1:
        raise TimeoutError("the budget had no time left")
    with time_boxed(seconds):
        return call()


def _why(error: BaseException) -> str:
    first: Sequence[str] = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[0][:300]}"


def _print_part(name: str, result: Any, reason: str | None, seconds: float) -> None:
    print(f"\n{name} ({seconds:.0f} s)" + (f": failed: {reason}" if reason else ""))
    for key, value in result.items() if isinstance(result, dict) else ():
        print(f"  {key:24} {value if not isinstance(value, dict) else _in_words(value)}")
    print(json.dumps({"part": name, "result": result, "reason": reason, "seconds": seconds}), flush=True)


def _in_words(figures: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value}" for key, value in figures.items())


if __name__ == "__main__":
    raise SystemExit(main())

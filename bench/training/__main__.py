"""Teaches the demo model a product that it has never seen, from twenty pictures, and says what it cost the others.

A table lamp, drawn in eight colours at three places, with captions (`deployments/training/demo/new_product.py`). Then
pictures of prompts with colours and places in which it was never shown are judged by a detector without a network, and
so are pictures of the demo world's own products, with the LoRA and without. Prints a card and the scores; the last line
is one JSON document. With `--folder` everything stays there, the sheet of pictures among it.

    python -m bench.training
    python -m bench.training --set steps=150 --count 20 --folder build/lamp
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch

from bench.card import card, print_card, silence_libraries
from deployments.registry import known_models
from deployments.training.demo.judging.drift import demo_judges
from deployments.training.demo.new_product import (
    product_judges,
    prompts_of_others,
    write_pictures,
)
from deployments.training.lora.dataset import read_examples
from deployments.training.lora.run_folder import RunFolder, TrainingProgress
from deployments.training.lora.settings import TrainingLimits, TrainingSettings
from deployments.training.lora.training_run import Judges, train_lora

FORECAST: Final = "the product in 80 % of the pictures, 5 points lost by others, in 6 minutes on two idle cores"

RECIPE: Final = TrainingSettings(
    name="lamp",
    trigger="lamp",
    model_name="demo-sd",
    rank=16,
    layers="all",
    steps=560,
    half_size_share=0.4,
    batch_size=6,
    learning_rate=2e-3,
    noise_offset=0.15,
    high_noise_share=0.7,
    prior_prompts=prompts_of_others(35),
    prior_pictures=40,
    prior_batch_size=3,
    prior_weight=2.0,
    guidance=6.0,
    sample_prompts=("a green {trigger} on the right on a white background",),
    checkpoint_every=60,
    validation_share=0.0,
)
"""What the demo model needs: its own training's noise, and more of the noisy timesteps, where outlines are decided."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="pictures that are judged, of each kind (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the pictures and the training stay")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="a setting that differs")
    options = parser.parse_args()
    silence_libraries()
    facts = card(torch.device("cpu"))
    print_card(facts)
    changed = {name: json.loads(value) for name, _, value in (each.partition("=") for each in options.set)}
    settings = TrainingSettings.model_validate({**RECIPE.model_dump(), **changed})
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(options.folder or Path(scratch), settings, options.count)
    print(json.dumps({"bench": "training", "forecast": FORECAST, "results": results} | facts))
    return 0


def measure(folder: Path, settings: TrainingSettings, count: int) -> dict[str, Any]:
    """Draws, trains and judges in `folder`; returns the scores, and the seconds of each part."""
    source = write_pictures(folder / "pictures")
    run = RunFolder(folder / "run", _tell)
    limits = TrainingLimits()
    judges = Judges(product_judges(settings.trigger, count), demo_judges(count))
    began = time.monotonic()
    found = train_lora(
        run, read_examples(source, settings, limits), settings, known_models()["demo-sd"], limits, judges=judges
    )
    seconds = time.monotonic() - began
    progress = run.read_progress()
    print(f"{settings.steps} steps, and what is made before them, in {progress.seconds:.0f} s; in all {seconds:.0f} s")
    print(
        f"the product in {found.trigger_right:.1%} of {count} pictures; {found.lost_points} points lost by others; "
        f"drift {found.drift}, by another seed {found.other_seed}"
    )
    return {
        **found.to_json(),
        "training_s": progress.seconds,
        "total_s": round(seconds, 1),
        "load_after": os.getloadavg()[0],
    }


def _tell(progress: TrainingProgress) -> None:
    if progress.stage == "training" and progress.step % 20 == 0:
        print(f"{progress.step}/{progress.steps} {progress.seconds:.0f} s, loss {progress.loss}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())

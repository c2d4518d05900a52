"""`python -m deployments.training.demo`: train the demo model from nothing, or evaluate the one that is there."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Final

from deployments.training.demo.evaluate import Trial, load, table, trials
from deployments.training.demo.export import SHIPPED
from deployments.training.demo.models import NATIVE
from deployments.training.demo.sheet import write_sheet
from deployments.training.demo.stages import Minutes, train

RUN: Final = Path("build/demo-training")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    options = _parser().parse_args(arguments)
    if options.evaluate:
        evaluate(options.model, options.size, options.count, options.sheet)
    else:
        train(options.folder, _minutes(options), options.model, options.from_shipped)
        print(f"done: {options.model}")


def evaluate(model: Path, size: int, count: int, sheet: Path | None) -> None:
    """Print the table of `count` pictures of `size`; write the contact sheet to `sheet` where one is named."""
    pipeline = load(model)
    done: list[Trial] = []
    for trial in trials(pipeline, count, size):
        done.append(trial)
        if len(done) % 40 == 0:
            print(f"{len(done)} of {count}, {sum(t.right for t in done)} all right", flush=True)
    print(table(done, size))
    if sheet:
        write_sheet(done, sheet)
        print(f"contact sheet: {sheet}")


def _minutes(options: argparse.Namespace) -> Minutes:
    minutes = Minutes() if options.minutes is None else Minutes().scaled(options.minutes)
    named = {"vae": options.vae_minutes, "text": options.text_minutes, "unet": options.unet_minutes}
    return replace(minutes, **{stage: value for stage, value in named.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deployments.training.demo", description=__doc__)
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder to export to, or to evaluate")
    training = parser.add_argument_group("training; start it again with the same options to go on")
    training.add_argument("--folder", type=Path, default=RUN, help="the run's own files (%(default)s)")
    training.add_argument("--minutes", type=_positive, help="for all stages together (160)")
    for stage, minutes in vars(Minutes()).items():
        text = f"for the {stage} stage alone ({minutes:g})"
        training.add_argument(f"--{stage}-minutes", type=_positive, help=text)
    training.add_argument("--from-shipped", action="store_true", help="go on training the shipped model's UNet")
    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument("--evaluate", action="store_true", help="judge pictures instead of training")
    evaluation.add_argument("--size", type=int, default=NATIVE, help="pixels (%(default)s)")
    evaluation.add_argument("--count", type=int, default=200, help="pictures (%(default)s)")
    evaluation.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) here")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


if __name__ == "__main__":
    main()

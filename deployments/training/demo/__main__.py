"""`python -m deployments.training.demo`: train a member of the demo family, or judge the one that is there."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from diffusers import DiffusionPipeline

from deployments.training.demo.annotators import ANNOTATORS, train_annotator
from deployments.training.demo.export import MODELS, SHIPPED
from deployments.training.demo.family import FAMILY
from deployments.training.demo.judging.evaluate import Trial, load, table, trials
from deployments.training.demo.judging.evaluate_family import answers, load_sd21, load_xl, summary
from deployments.training.demo.judging.evaluate_style import load_style, styled_trials
from deployments.training.demo.judging.sheet import answer_sheet, trial_sheet
from deployments.training.demo.models import NATIVE
from deployments.training.demo.stages.finetune_decoder import finetune_decoder, psnr_table
from deployments.training.demo.stages.stages import Minutes, train, train_member

Case = TypeVar("Case")

RUN: Final = Path("build/demo-training")
FIRST: Final = SHIPPED.name
WORDED: Final[Mapping[str, Callable[[Path], DiffusionPipeline]]] = {
    FIRST: load,
    "demo-sd21": load_sd21,
    "demo-sdxl": load_xl,
}
STYLED: Final = "demo-style"
DECODER: Final = "vae-decoder"
ANNOTATING: Final[Mapping[str, str]] = {f"annotator-{kind}": kind for kind in ANNOTATORS}


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    options = _parser().parse_args(arguments)
    out = options.model or _home(options.member)
    if not options.evaluate:
        _train(options, out)
        print(f"done: {out}")
    elif options.member == DECODER:
        print(psnr_table(out, options.count))
    elif options.member == STYLED:
        _judge_trials(styled_trials(load_style(out), options.count), options.count, NATIVE, options.sheet)
    elif options.member in WORDED:
        evaluate(out, options.size, options.count, options.sheet, WORDED[options.member])
    else:
        evaluate_member(options.member, out, options.count, options.sheet)


def evaluate(
    model: Path, size: int, count: int, sheet: Path | None, read: Callable[[Path], DiffusionPipeline] = load
) -> None:
    """Print the table of `count` pictures of `size` for held-out captions; write a contact sheet where one is named."""
    _judge_trials(trials(read(model), count, size), count, size, sheet)


def _judge_trials(made: Iterable[Trial], count: int, size: int, sheet: Path | None) -> None:
    done = _collected(made, count, lambda trial: trial.right)
    print(table(done, size))
    if sheet:
        trial_sheet(done, sheet)


def evaluate_member(name: str, model: Path, count: int, sheet: Path | None) -> None:
    """The same for a member that is shown a hint, or a picture with a mask."""
    done = _collected(answers(name, count, model), count, lambda answer: answer.score)
    print(summary(name, done))
    if sheet:
        answer_sheet(done, sheet)


def _collected(cases: Iterable[Case], count: int, score: Callable[[Case], float]) -> list[Case]:
    """All of them; minutes pass between the first and the last, so it says how it goes."""
    done: list[Case] = []
    for case in cases:
        done.append(case)
        if len(done) % 20 == 0:
            print(f"{len(done)} of {count}, mean {sum(map(score, done)) / len(done):.3f}", flush=True)
    return done


def _train(options: argparse.Namespace, out: Path) -> None:
    if options.member == FIRST:
        train(options.folder, _minutes(options), out, options.from_shipped)
    elif options.member in FAMILY:
        train_member(options.member, options.folder / options.member, options.minutes, out)
    elif options.member == DECODER:
        finetune_decoder(options.folder / DECODER, options.minutes, out)
    else:
        train_annotator(ANNOTATING[options.member], options.folder / "annotators", out, options.minutes)


def _home(member: str) -> Path:
    """Where a member is shipped."""
    if member == DECODER:
        return SHIPPED
    return MODELS / "demo-annotators" / ANNOTATING[member] if member in ANNOTATING else MODELS / member


def _minutes(options: argparse.Namespace) -> Minutes:
    minutes = Minutes() if options.minutes is None else Minutes().scaled(options.minutes)
    named = {"vae": options.vae_minutes, "text": options.text_minutes, "unet": options.unet_minutes}
    return replace(minutes, **{stage: value for stage, value in named.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deployments.training.demo", description=__doc__)
    members = (FIRST, DECODER, *FAMILY, *ANNOTATING)
    parser.add_argument("--member", choices=members, default=FIRST, help="of the demo family, or demo-sd's VAE decoder")
    parser.add_argument(
        "--model", type=Path, help="folder to export to, or to evaluate; where it is shipped by default"
    )
    training = parser.add_argument_group("training; start it again with the same options to go on")
    training.add_argument("--folder", type=Path, default=RUN, help="the run's own files (%(default)s)")
    training.add_argument("--minutes", type=_positive, help="for all stages together; each member has its own default")
    for stage, minutes in vars(Minutes()).items():
        text = f"{FIRST}: for the {stage} stage alone ({minutes:g})"
        training.add_argument(f"--{stage}-minutes", type=_positive, help=text)
    training.add_argument("--from-shipped", action="store_true", help=f"{FIRST}: go on training the shipped UNet")
    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument("--evaluate", action="store_true", help="judge pictures instead of training")
    evaluation.add_argument(
        "--size", type=int, default=NATIVE, help="pixels, for members that take words alone (%(default)s)"
    )
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

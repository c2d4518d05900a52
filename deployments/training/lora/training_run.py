"""One training, from its files to its scores: what the command line and servers run."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from deployments.engine.protocol.errors import InvalidParameter, NumericalFailure
from deployments.engine.protocol.spec import ModelSpec
from deployments.training import checkpoint
from deployments.training.lora.base_networks import BaseNetworks, load_base
from deployments.training.lora.clock import TrainingClock
from deployments.training.lora.dataset import Example, dataset_hash
from deployments.training.lora.evaluation import UNRELATED, Evaluation, JudgedPrompt, evaluate, write_evaluation
from deployments.training.lora.learning.adapter_layers import add_lora, write_lora
from deployments.training.lora.learning.objective import TrainingNoise
from deployments.training.lora.learning.processes import TrainingProcesses, join_processes
from deployments.training.lora.learning.trainer import LoraTrainer, TrainingEnd, check_checkpoint
from deployments.training.lora.lessons import Lessons, prepare_lessons
from deployments.training.lora.pictures import PictureMaker
from deployments.training.lora.run_folder import RunFolder
from deployments.training.lora.settings import TrainingLimits, TrainingSettings
from deployments.whole_files import replaced

_FAMILIES: Final = {
    768: ("sd_v1", "stable-diffusion-v1"),
    1024: ("sd_v2", "stable-diffusion-v2-768-v"),
    2048: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}
"""By the width of the text: what kohya's scripts, and modelspec, call the base."""


@dataclass(frozen=True)
class Judges:
    """What is asked of a model before and after, if the settings name no prompts: with the trigger, and without."""

    mine: Sequence[JudgedPrompt] = ()
    unrelated: Sequence[JudgedPrompt] = ()


def train_lora(
    run: RunFolder,
    examples: Sequence[Example],
    settings: TrainingSettings,
    spec: ModelSpec,
    limits: TrainingLimits,
    *,
    device: str = "auto",
    judges: Judges | None = None,
) -> Evaluation:
    """Trains on `examples`, or goes on where the folder's checkpoint is, judges the LoRA, and writes both to `run`.

    If torch's launcher has started this process with others, it is the first, and they `help_to_train`. The folder's
    progress says how it goes, and how it ended. Raises InvalidParameter, ModelLoadError, Cancelled, and
    NumericalFailure.
    """
    check_limits(settings, limits)
    run.begin(settings)
    with run.recorded():
        return _train(run, examples, settings, spec, limits, join_processes(device), judges or find_judges(spec))


def help_to_train(run: RunFolder, settings: TrainingSettings, spec: ModelSpec, device: str = "auto") -> None:
    """Takes the steps of the training in `run` together with the first process, which alone writes there.

    Raises ModelLoadError. Of all else that ends the training the first process tells.
    """
    processes = join_processes(device)
    # What cannot be loaded has been refused there by now.
    processes.agree(lambda: None)
    base = load_base(spec, processes.device, processes.precision)
    lessons: Lessons = processes.agree(_never)
    with contextlib.suppress(NumericalFailure):
        _learn(base, lessons.to(processes.device), settings, processes, run, TrainingClock(run, math.inf), _never)


def _train(
    run: RunFolder,
    examples: Sequence[Example],
    settings: TrainingSettings,
    spec: ModelSpec,
    limits: TrainingLimits,
    processes: TrainingProcesses,
    judges: Judges,
) -> Evaluation:
    clock = TrainingClock(run, min(settings.max_minutes or limits.minutes, limits.minutes))
    run.change_progress(stage="encoding", steps=settings.steps)
    base = load_base(spec, processes.device, processes.precision)
    processes.agree(lambda: None)
    # Also here, before what stays is made anew and written over.
    check_checkpoint(checkpoint.load(run.checkpoint), base.digest, dataset_hash(examples))
    size = base.spec.native if settings.resolution is None else (settings.resolution, settings.resolution)

    def prepare() -> Lessons:
        return prepare_lessons(base, examples, settings, size, run, clock.check_preparation).to(torch.device("cpu"))

    lessons = processes.agree(prepare).to(processes.device)
    maker = PictureMaker(base, *base.spec.native, settings.guidance, clock.check)
    end = _learn(base, lessons, settings, processes, run, clock, _sampler(maker, settings, run, clock))
    run.change_progress(stage="evaluating", ended=end.why)
    found = evaluate(base.unet, maker, *_questions(settings, lessons, judges), run.sheet, clock.judge())
    write_evaluation(run.evaluation, found)
    write_lora(run.lora, base.unet, describe(base, lessons, settings, found, run, end))
    return found


def _learn(
    base: BaseNetworks,
    lessons: Lessons,
    settings: TrainingSettings,
    processes: TrainingProcesses,
    run: RunFolder,
    clock: TrainingClock,
    sample: Callable[[int], None],
) -> TrainingEnd:
    """Trains to the end, with the other processes."""
    weights = add_lora(base.unet, settings.rank, settings.layers, settings.seed)
    noising = _noising(base, settings)
    trainer = LoraTrainer(base.unet, weights, lessons, noising, settings, processes, run, clock, sample)
    base.unet.train()
    end = trainer.train()
    base.unet.eval()
    processes.end()
    return end


def _never(*_: Any) -> Any:
    raise AssertionError("only the first process decides and makes pictures")


def check_limits(settings: TrainingSettings, limits: TrainingLimits) -> None:
    """Raises InvalidParameter if more is asked for than is allowed."""
    if settings.steps > limits.steps:
        raise InvalidParameter("steps", f"must be at most {limits.steps}")
    if settings.max_minutes is not None and settings.max_minutes > limits.minutes:
        raise InvalidParameter("max_minutes", f"must be at most {limits.minutes:g}")


def describe(
    base: BaseNetworks,
    lessons: Lessons,
    settings: TrainingSettings,
    found: Evaluation,
    run: RunFolder,
    end: TrainingEnd,
) -> dict[str, str]:
    """Returns the LoRA's provenance, as its header has it: kohya's and modelspec's keys, and ours."""
    progress = run.read_progress()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    told = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(settings.rank),
        "ss_network_alpha": str(settings.rank),
        "ss_steps": str(end.step),
        "ss_learning_rate": str(settings.learning_rate),
        "ss_num_train_images": str(len(lessons.whole.learnt)),
        "ss_output_name": settings.name,
        "modelspec.title": settings.name,
        "modelspec.trigger_phrase": settings.trigger,
        "modelspec.date": now,
        "darkroom.base_model": base.spec.name,
        "darkroom.base_fingerprint": base.fingerprint,
        "darkroom.dataset_sha256": lessons.digest,
        "darkroom.settings": settings.model_dump_json(),
        "darkroom.training": json.dumps(asdict(progress)),
        "darkroom.weights": json.dumps({name: getattr(end, name) for name in ("step", "loss", "validation_loss")}),
        "darkroom.evaluation": json.dumps(found.to_json()),
        "darkroom.version": version("darkroom"),
    }
    if base.text_width in _FAMILIES:
        kohya, spec = _FAMILIES[base.text_width]
        told |= {"ss_base_model_version": kohya, "modelspec.architecture": f"{spec}/lora"}
    return told


def find_judges(spec: ModelSpec) -> Judges:
    """Returns the judges for a model: those of the demo world for the demo family, for others prompts alone."""
    from deployments.training.demo.export import MODELS
    from deployments.training.demo.judging.drift import demo_judges

    if Path(spec.source).resolve().is_relative_to(MODELS):
        return Judges(unrelated=demo_judges())
    return Judges(unrelated=[JudgedPrompt(prompt) for prompt in UNRELATED])


def _questions(
    settings: TrainingSettings, lessons: Lessons, judges: Judges
) -> tuple[Sequence[JudgedPrompt], Sequence[JudgedPrompt]]:
    mine = [JudgedPrompt(settings.fill(prompt)) for prompt in settings.evaluation_prompts] or judges.mine
    unrelated = [JudgedPrompt(prompt) for prompt in settings.unrelated_prompts] or judges.unrelated
    return mine or [JudgedPrompt(caption) for caption in lessons.captions[:_SHOWN]], unrelated


_SHOWN: Final = 4


def _noising(base: BaseNetworks, settings: TrainingSettings) -> TrainingNoise:
    return TrainingNoise(
        base.signal.cpu(),
        base.predicts_v,
        settings.min_snr_gamma,
        offset=settings.noise_offset,
        high_share=settings.high_noise_share,
    )


def _sampler(
    maker: PictureMaker, settings: TrainingSettings, run: RunFolder, clock: TrainingClock
) -> Callable[[int], None]:
    prompts = [settings.fill(prompt) for prompt in settings.sample_prompts]

    def sample(step: int) -> None:
        for begin in range(0, len(prompts), maker.batch):
            if clock.is_over:
                return
            part = prompts[begin : begin + maker.batch]
            seeds = [settings.seed + begin + number for number in range(len(part))]
            for number, picture in enumerate(maker.make(part, seeds), begin):
                with replaced(run.sample(step, number)) as neighbour:
                    picture.save(neighbour, format="PNG")

    return sample

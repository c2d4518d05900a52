"""`darkroom train`: teaches a model something new from pictures, and serves it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deployments.engine.protocol.errors import EngineError, InvalidParameter, UnknownModel
from deployments.engine.protocol.spec import ModelSpec
from deployments.training.lora.dataset import check_examples, read_examples
from deployments.training.lora.order import TrainingOrder
from deployments.training.lora.registration import register
from deployments.training.lora.run_folder import RunFolder, TrainingProgress
from deployments.training.lora.settings import TrainingLimits, TrainingSettings
from serve_app.cli.exits import exit_on_errors
from serve_app.cli.options import AsJson
from serve_app.cli.results import say
from serve_app.cli.training.loras import versions_of
from serve_app.config.errors import ConfigError, describe_errors, read_yaml, suggest
from serve_app.config.server import AppConfig, load_config
from serve_app.trainings.runner import launch_process

_LIMITS = TrainingLimits()
_LOOK_S = 0.5


def train(
    pictures: Annotated[Path, typer.Argument(help="A folder or zip of pictures, with captions as .txt beside them.")],
    name: Annotated[str, typer.Option(help="What the LoRA is called.")],
    trigger: Annotated[str, typer.Option(help="The word in captions and prompts that calls what is learnt.")],
    model: Annotated[str | None, typer.Option(help="The model; the configuration's first one if not given.")] = None,
    template: Annotated[
        str | None, typer.Option(help="The caption of every picture, with {trigger}; for pictures without files.")
    ] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    rank: Annotated[int | None, typer.Option(help="How much it can hold: 4 to 128.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="After so many minutes it learns no further.")] = None,
    settings: Annotated[Path | None, typer.Option(help="A YAML file with further settings: docs/training.md.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="The training's folder, trainings/NAME if not given; it goes on from there.")
    ] = None,
    register_it: Annotated[
        bool, typer.Option("--register", help="Then serve it: put it into the configuration's `loras.folder`.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Train in so many, with a GPU each; they share a batch's rows.")
    ] = 1,
    config: Annotated[str, typer.Option(help="The configuration whose models it may train on.")] = "demo",
    as_json: AsJson = False,
) -> None:
    """Teach a model a product, a person or a look. Ctrl-C keeps the last checkpoint; the same command goes on."""
    with exit_on_errors(as_json=as_json):
        served = load_config(config)
        spec = _find_model(served, model)
        options = {"template": template, "steps": steps, "rank": rank, "max_minutes": max_minutes}
        given = {"name": name, "trigger": trigger, "model_name": spec.name} | {
            field: value for field, value in options.items() if value is not None
        }
        asked = _read_settings(settings, given)
        versions = versions_of(served) if register_it else None
        order = TrainingOrder(spec, pictures.absolute(), _LIMITS, device, processes)
        with _shown() as tell:
            folder = RunFolder(run or Path("trainings") / name, tell)
            folder.forget_cancel()
            if processes == 1:
                _train_here(folder, asked, order)
            else:
                _train_together(folder, asked, order, tell)
        found = folder.read_evaluation() or {}
        told: dict[str, Any] = {"lora": str(folder.lora), "sheet": str(folder.sheet), "evaluation": found}
        line = f"{folder.lora}: drift {found['drift']}; before and after in {folder.sheet}"
        if versions is not None:
            told["version"] = register(folder, versions).number
            line += f"; served as {name}, version {told['version']}"
        say(line, told if as_json else None)


def _train_here(folder: RunFolder, asked: TrainingSettings, order: TrainingOrder) -> None:
    examples = read_examples(order.source, asked, order.limits)
    # Imported here because it is slow, and refusing need not wait for it.
    from deployments.training.lora.training_run import train_lora

    train_lora(folder, examples, asked, order.spec, order.limits, device=order.device)


def _train_together(
    folder: RunFolder, asked: TrainingSettings, order: TrainingOrder, tell: Callable[[TrainingProgress], None]
) -> None:
    """Trains in processes of their own, which end with this one. Raises InvalidParameter, and EngineError."""
    check_examples(order.source, asked, order.limits)
    folder.begin(asked)
    with folder.held():
        folder.change_progress(state="queued", error="")
        order.write(folder.path)
    process = launch_process(folder.path)
    try:
        while process.poll() is None:
            tell(folder.read_progress())
            time.sleep(_LOOK_S)
    finally:
        process.terminate()
        process.wait()
    progress = folder.read_progress()
    if progress.state != "succeeded":
        raise EngineError(progress.error or f"the training was {progress.state}; {folder.path / 'log.txt'} has more")


def _find_model(served: AppConfig, name: str | None) -> ModelSpec:
    """Returns the model of that name, or the first. Raises UnknownModel."""
    hosted = [spec for deployment in served.deployments for spec in served.specs_of(deployment)]
    for spec in hosted:
        if name is None or spec.has_name(name):
            return spec
    known = [spec.name for spec in hosted]
    raise UnknownModel("model", f"there is no model {name!r}{suggest(str(name), known)}")


def _read_settings(file: Path | None, given: dict[str, Any]) -> TrainingSettings:
    """Returns the settings of the command line over those of a file. Raises InvalidParameter."""
    try:
        found = {} if file is None else read_yaml(file)
    except ConfigError as error:
        raise InvalidParameter("settings", str(error)) from None
    if not isinstance(found, dict):
        raise InvalidParameter("settings", "must have names and values, one a line")
    try:
        return TrainingSettings.model_validate({**found, **given})
    except ValidationError as error:
        field, _, rule = next(describe_errors(error)).partition(": ")
        raise InvalidParameter(field, rule or field) from None


@contextmanager
def _shown() -> Iterator[Any]:
    """Shows a training's progress on standard error; gives what is to be called with it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=None, told="")

        def tell(progress: TrainingProgress) -> None:
            loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
            told = f"step {progress.step} of {progress.steps}{loss}" if progress.steps else ""
            total = progress.steps or None
            bar.update(task, description=progress.stage, total=total, completed=progress.step, told=told)

        yield tell

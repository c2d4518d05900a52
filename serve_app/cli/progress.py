"""Runs one request, on a server or in this process, and shows its progress on the terminal."""

import asyncio
import os
import uuid
from collections.abc import Generator, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from deployments.engine.protocol import events as engine_events
from deployments.engine.protocol.errors import InvalidParameter, UnknownModel
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams, OutputFormat
from serve_app.client import DarkroomClient, DarkroomError, ServedImage, ServerEvent
from serve_app.client.answers import reading_answer
from serve_app.client.messages import CANCEL_SECONDS, is_address
from serve_app.config.errors import suggest
from serve_app.config.server import AppConfig
from serve_app.service import DiffusionService

FORMATS: Mapping[str, OutputFormat] = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


@dataclass(frozen=True, slots=True)
class Step:
    """`done` of `total` steps; `position` is the number of requests ahead while none is done."""

    done: int
    total: int
    position: int = 0


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """A finished image, as a file's content."""

    index: int
    seed: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that failed, though others may not have."""

    index: int
    message: str


ProgressEvents = Generator[Step | FinishedImage | Failure, None, None]


def output_format(output: Path) -> OutputFormat:
    """The format that the file's name asks for. Raises InvalidParameter if there is none, or no such folder."""
    if output.suffix.lower() not in FORMATS:
        raise InvalidParameter("output", f"must end in one of {', '.join(FORMATS)}, got {output.name!r}")
    if not output.absolute().parent.is_dir():
        raise InvalidParameter("output", f"there is no folder {str(output.parent)!r}")
    return FORMATS[output.suffix.lower()]


def stream_from_server(
    url: str, params: GenerationParams, uploads: Uploads | None = None, api_key: str | None = None
) -> ProgressEvents:
    """Yields the request's progress as the server at `url` streams it. Raises InvalidParameter and DarkroomError.

    Whoever stops before the end, by closing this or by Ctrl-C, has the server stop, too.
    """
    check_url(url)
    name = f"cli-{uuid.uuid4().hex}"
    with DarkroomClient(url, api_key=api_key) as client:
        try:
            for event in client.stream(params, uploads=uploads, request_id=name):
                if (told := _from_server_event(event)) is not None:
                    yield told
        except (KeyboardInterrupt, GeneratorExit):
            # It notices by itself, but behind a proxy perhaps late.
            with suppress(DarkroomError):
                client.with_timeout(CANCEL_SECONDS).cancel(name)
            raise


def check_url(url: str) -> None:
    """Raises InvalidParameter unless `url` could be a server's."""
    if not is_address(url):
        raise InvalidParameter("url", f"must be like http://127.0.0.1:8000, got {url!r}")


def create_local_service(config: AppConfig, model: str | None) -> DiffusionService:
    """Creates a service in this process with that model only, set up as in `config`. Raises EngineError."""
    specs = [(deployment, spec) for deployment in config.deployments for spec in config.specs_of(deployment)]
    for deployment, spec in specs:
        if model is None or spec.has_name(model):
            options = deployment.engine_config().options
            loras = config.loras.catalogue()
            return DiffusionService(models=[spec], annotators=config.annotators.specs(), loras=loras, **options)
    known = [name for _, spec in specs for name in (spec.name, *spec.aliases)]
    raise UnknownModel("model_name", f"there is no such model{suggest(model, known)}")


def run_in_process(
    service: DiffusionService, params: GenerationParams, uploads: Uploads | None = None
) -> ProgressEvents:
    """Yields the request's progress in an engine of this process. Raises EngineError. Closes `service`."""
    # OpenMP reads it when torch is imported: threads that spin while they wait take the cores from everything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        runner.run(stack.enter_async_context(service))
        events = service.events(params, uploads=uploads)
        stack.push_async_callback(events.aclose)
        try:
            while (event := runner.run(_next_event(events))) is not None:
                yield from _from_engine_event(event)
        finally:
            runner.run(stack.aclose())


def show_progress(
    events: Iterator[Step | FinishedImage | Failure], what: str, console: Console
) -> Iterator[FinishedImage | Failure]:
    """Shows a progress bar on a terminal until the request is over; yields its images as they come."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, state="starting")
        for item in events:
            if isinstance(item, Step):
                _show(bar, task, item)
            else:
                yield item


def path_of(picture: FinishedImage, output: Path, *, numbered: bool) -> Path:
    """The file for an image: `output` itself, or one numbered beside it."""
    return output.with_stem(f"{output.stem}-{picture.index}") if numbered else output


def _show(bar: Progress, task: TaskID, step: Step) -> None:
    waiting = step.position > 0 and not step.done
    state = f"{step.position} before it" if waiting else f"step {step.done} of {step.total}"
    bar.update(task, total=step.total or None, completed=step.done, state=state)


@reading_answer()
def _from_server_event(event: ServerEvent) -> Step | FinishedImage | Failure | None:
    match event.name:
        case "progress":
            return Step(event.data["step"], event.data["steps"], event.data["position"])
        case "image":
            image = ServedImage.from_json(event.data)
            return FinishedImage(image.index, image.seed, image.data)
        case "failed":
            return Failure(event.data["index"], event.data["message"])
    return None


async def _next_event(events: Any) -> engine_events.Event | None:
    event: engine_events.Event | None = await anext(events, None)
    return event


def _from_engine_event(event: engine_events.Event) -> ProgressEvents:
    match event:
        case engine_events.Progress():
            yield Step(event.step, event.steps, event.position)
        case engine_events.ImageDone():
            yield FinishedImage(event.index, event.seed, event.data)
        case engine_events.ImageFailed():
            yield Failure(event.index, event.error.message)
        case engine_events.Failed():
            raise event.error

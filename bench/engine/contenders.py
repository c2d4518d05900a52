"""Serves the same requests in three ways: the engine, diffusers' pipelines one by one, and these in like batches.

All requests are there at the start; a request's latency is the time until its picture is ready. The engine delivers an
encoded PNG, with the caller's own pixels outside an inpaint mask; the pipelines stop at the PIL image. The difference
counts against the engine.
"""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from diffusers import ControlNetModel, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from bench.engine.pipelines import arguments, pipeline_class, restore_unmasked
from bench.engine.workload import like
from bench.timing import synchronize
from deployments.engine.engine import Engine
from deployments.engine.lora.adapter import Adapter
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.engine_config import EngineConfig, EngineOptions
from deployments.engine.protocol.errors import EngineError
from deployments.engine.protocol.events import Event, Failed, Finished, ImageDone, ImageFailed
from deployments.engine.protocol.files.loras import LoraFile
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import as_part

Pixels = NDArray[np.int16]


@dataclass(frozen=True)
class Outcome:
    """Latencies (seconds) and pictures are in the order of the requests. Rows are what the callers asked for;
    `computed_rows` has what was padded, too.
    """

    seconds: float
    latencies: tuple[float, ...]
    pictures: tuple[Pixels, ...] = field(repr=False)
    unet_calls: int
    unet_rows: int
    computed_rows: int


class Inbox:
    """Takes the engine's events in and notes when each request was finished."""

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}
        self.finished: dict[str, float] = {}
        self.errors: list[EngineError] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, ImageDone):
            self.images[event.request_id] = event.data
        elif isinstance(event, Finished):
            self.finished[event.request_id] = time.perf_counter()
        elif isinstance(event, Failed | ImageFailed):
            self.errors.append(event.error)


def serve_with_engine(
    models: Sequence[LoadedModel],
    requests: Sequence[Request],
    read_adapter: Callable[[LoraFile], Adapter] | None = None,
    **options: Unpack[EngineOptions],
) -> Outcome:
    """Serves all `requests` at once with a fresh engine; `options` are those of `EngineConfig`, and `read_adapter`
    reads LoRAs. Raises refusals.
    """
    inbox = Inbox()
    engine = Engine(models, inbox, EngineConfig(**options), read_adapter=read_adapter)
    try:
        started = time.perf_counter()
        for request in requests:
            engine.submit(request)
        engine.drain()
        seconds = time.perf_counter() - started
    finally:
        engine.close()
    if inbox.errors:
        raise inbox.errors[0]
    return Outcome(
        seconds,
        tuple(inbox.finished[request.id] - started for request in requests),
        tuple(_pixels(Image.open(io.BytesIO(inbox.images[request.id]))) for request in requests),
        engine.tracker.total.unet_calls,
        engine.tracker.total.unet_rows,
        engine.tracker.total.padded_rows,
    )


@dataclass(frozen=True)
class _Call:
    """One call of one pipeline, made ready. It can be made once, because it uses up its generators."""

    pipeline: Any
    scheduler: Any
    arguments: dict[str, Any]

    def __call__(self) -> list[Image.Image]:
        self.pipeline.scheduler = self.scheduler
        images: list[Image.Image] = self.pipeline(**self.arguments).images
        return images


class Pipelines:
    """diffusers' own pipelines around one copy of the weights, with the samplers as a user of diffusers makes them.

    `diffusers` is the one for text-to-image; the others are made of its networks when they are first asked for.
    """

    def __init__(self, folder: Path, model: LoadedModel) -> None:
        self.diffusers = StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, requires_safety_checker=False, dtype=model.dtype
        ).to(model.device)
        self.diffusers.set_progress_bar_config(disable=True)
        self._nets = {name: _controlnet(as_part(part).source, model) for name, part in model.spec.controlnets.items()}
        self._made: dict[tuple[Any, tuple[str, ...]], Any] = {(StableDiffusionPipeline, ()): self.diffusers}
        self._model = model

    def one_by_one(self, requests: Sequence[Request]) -> Outcome:
        """One call per request, in the order in which they came."""
        return self.serve(requests, [[index] for index in range(len(requests))])

    def in_like_batches(self, requests: Sequence[Request]) -> Outcome:
        """One call per group of like requests; the oldest group first."""
        return self.serve(requests, like(requests))

    def serve(self, requests: Sequence[Request], groups: Sequence[Sequence[int]]) -> Outcome:
        """One call per group of indices."""
        calls = [self._call([requests[index] for index in group]) for group in groups]
        latencies = [0.0] * len(requests)
        pictures: dict[int, Image.Image] = {}
        unet_calls = unet_rows = 0
        synchronize(self._model.device)
        started = time.perf_counter()
        for group, call in zip(groups, calls, strict=True):
            pictures |= zip(group, call(), strict=True)
            for index in group:
                latencies[index] = time.perf_counter() - started
            unet_calls += call.pipeline.num_timesteps
            unet_rows += call.pipeline.num_timesteps * sum(requests[index].unet_rows for index in group)
        seconds = time.perf_counter() - started
        in_order = tuple(restore_unmasked(pictures[index], one).astype(np.int16) for index, one in enumerate(requests))
        return Outcome(seconds, tuple(latencies), in_order, unet_calls, unet_rows, unet_rows)

    def images(self, requests: Sequence[Request]) -> list[ImageArray]:
        """Returns the images [H, W, 3] that one call makes for like requests, as a server would answer with them."""
        call = self._call(requests)
        return [restore_unmasked(made, request) for made, request in zip(call(), requests, strict=True)]

    def _call(self, requests: Sequence[Request]) -> _Call:
        samplers = self._model.samplers.of(requests[0].pipeline)
        scheduler = samplers.scheduler(str(requests[0].params.sampler))
        return _Call(self._pipeline(requests[0]), scheduler, arguments(requests))

    def _pipeline(self, request: Request) -> Any:
        kind, names = pipeline_class(request), tuple(control.type for control in request.params.controls)
        if (kind, names) not in self._made:
            nets = [self._nets[name] for name in names]
            controlnet = {"controlnet": nets if len(nets) > 1 else nets[0]} if nets else {}
            made = kind(**self.diffusers.components, **controlnet, requires_safety_checker=False)
            made.set_progress_bar_config(disable=True)
            self._made[kind, names] = made
        return self._made[kind, names]


def largest_difference(ours: Outcome, theirs: Outcome) -> int:
    """Returns the largest difference of any colour value in any picture, in steps of 1/255."""
    return max(int(np.abs(one - other).max()) for one, other in zip(ours.pictures, theirs.pictures, strict=True))


def _controlnet(folder: str, model: LoadedModel) -> Any:
    return ControlNetModel.from_pretrained(folder, torch_dtype=model.dtype).to(model.device)


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).astype(np.int16)

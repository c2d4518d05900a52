"""Three ways to serve the same requests: the engine, diffusers' pipelines one by one, and they in like batches.

All requests are there at the start; a request's latency is the time until its picture is there. The engine delivers an
encoded PNG, the pipelines stop at the PIL image: what that costs is to the engine's disadvantage.
"""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.pipelines import Pipelines
from bench.timing import synchronize
from bench.workload import like
from deployments.engine.engine import Engine
from deployments.engine.errors import EngineError
from deployments.engine.events import Event, Finished, ImageDone, ImageFailed, Refused
from deployments.engine.models import LoadedModel
from deployments.engine.row import Request

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
        elif isinstance(event, Refused | ImageFailed):
            self.errors.append(event.error)


def serve_with_engine(model: LoadedModel, requests: Sequence[Request], **options: Any) -> Outcome:
    """All `requests` at once through a fresh engine; `options` are the engine's own. Raises what the engine refuses."""
    inbox = Inbox()
    engine = Engine([model], inbox, **options)
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
        engine.counters.unet_calls,
        engine.counters.unet_rows,
        engine.counters.padded_rows,
    )


class Pipeline:
    """diffusers' own pipelines on their own copy of the weights, with samplers as a user of diffusers makes them."""

    def __init__(self, folder: Path, model: LoadedModel) -> None:
        self._pipelines = Pipelines(folder, model.device, model.dtype, model.spec.controlnets)
        self.diffusers = self._pipelines.text
        self.diffusers.set_progress_bar_config(disable=True)
        self._model = model

    def one_by_one(self, requests: Sequence[Request]) -> Outcome:
        """One call per request, in the order in which they came."""
        return self.serve(requests, [[index] for index in range(len(requests))])

    def in_like_batches(self, requests: Sequence[Request]) -> Outcome:
        """One call per group of requests that differ in prompts, pictures and seeds alone; the oldest group first."""
        return self.serve(requests, like(requests))

    def serve(self, requests: Sequence[Request], groups: Sequence[Sequence[int]]) -> Outcome:
        """One call per group of indices."""
        schedulers = [self._model.samplers.scheduler(str(requests[group[0]].params.sampler)) for group in groups]
        latencies = [0.0] * len(requests)
        pictures: dict[int, Image.Image] = {}
        rows: list[int] = []
        counter = self.diffusers.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
        synchronize(self._model.device)
        started = time.perf_counter()
        for group, scheduler in zip(groups, schedulers, strict=True):
            made = self._pipelines.make([requests[index] for index in group], scheduler)
            pictures |= zip(group, made, strict=True)
            for index in group:
                latencies[index] = time.perf_counter() - started
        seconds = time.perf_counter() - started
        counter.remove()
        in_order = tuple(_pixels(pictures[index]) for index in range(len(requests)))
        return Outcome(seconds, tuple(latencies), in_order, len(rows), sum(rows), sum(rows))


def largest_difference(ours: Outcome, theirs: Outcome) -> int:
    """Of any colour value in any picture, in steps of 1/255."""
    return max(int(np.abs(one - other).max()) for one, other in zip(ours.pictures, theirs.pictures, strict=True))


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).astype(np.int16)

"""Three ways to serve the same requests: the engine, diffusers' pipeline one by one, and the pipeline in like batches.

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
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

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
    """diffusers' own pipeline on its own copy of the weights, with the samplers as a user of diffusers makes them."""

    def __init__(self, folder: Path, model: LoadedModel) -> None:
        self.diffusers = StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, requires_safety_checker=False, dtype=model.dtype
        ).to(model.device)
        self.diffusers.set_progress_bar_config(disable=True)
        self._model = model

    def one_by_one(self, requests: Sequence[Request]) -> Outcome:
        """One call per request, in the order in which they came."""
        return self.serve(requests, [[index] for index in range(len(requests))])

    def in_like_batches(self, requests: Sequence[Request]) -> Outcome:
        """One call per group of requests with the same steps, sampler and guidance; the oldest group first."""
        return self.serve(requests, like(requests))

    def serve(self, requests: Sequence[Request], groups: Sequence[Sequence[int]]) -> Outcome:
        """One call per group of indices."""
        schedulers = [self._model.samplers.scheduler(str(requests[group[0]].params.sampler)) for group in groups]
        latencies = [0.0] * len(requests)
        pictures: dict[int, Image.Image] = {}
        unet_calls = unet_rows = 0
        synchronize(self._model.device)
        started = time.perf_counter()
        for group, self.diffusers.scheduler in zip(groups, schedulers, strict=True):
            pictures |= zip(group, self._call([requests[index] for index in group]), strict=True)
            for index in group:
                latencies[index] = time.perf_counter() - started
            unet_calls += len(self.diffusers.scheduler.timesteps)
            unet_rows += len(self.diffusers.scheduler.timesteps) * sum(requests[index].unet_rows for index in group)
        seconds = time.perf_counter() - started
        in_order = tuple(_pixels(pictures[index]) for index in range(len(requests)))
        return Outcome(seconds, tuple(latencies), in_order, unet_calls, unet_rows, unet_rows)

    def _call(self, requests: Sequence[Request]) -> list[Image.Image]:
        shared = requests[0].params
        images: list[Image.Image] = self.diffusers(
            [request.params.prompt for request in requests],
            negative_prompt=[request.params.negative_prompt for request in requests],
            width=shared.width,
            height=shared.height,
            guidance_scale=shared.guidance_scale,
            num_inference_steps=shared.num_inference_steps,
            generator=[torch.Generator("cpu").manual_seed(request.seed_of(0)) for request in requests],
        ).images
        return images


def largest_difference(ours: Outcome, theirs: Outcome) -> int:
    """Of any colour value in any picture, in steps of 1/255."""
    return max(int(np.abs(one - other).max()) for one, other in zip(ours.pictures, theirs.pictures, strict=True))


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).astype(np.int16)

"""Runs requests through an engine, and through diffusers' own pipeline, for comparison."""

import io
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, Unpack

import diffusers
import numpy as np
from diffusers import ControlNetModel
from numpy.typing import NDArray
from PIL import Image

from bench.engine.pipelines import arguments, pipeline_class, restore_unmasked
from deployments.engine.engine import Engine
from deployments.engine.lora.adapter import Adapter
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.engine_config import EngineConfig, EngineOptions
from deployments.engine.protocol.events import Event, ImageDone
from deployments.engine.protocol.files.loras import LoraFile
from deployments.engine.protocol.inputs import Inputs
from deployments.engine.protocol.params import GenerationParams, effective_params
from deployments.engine.protocol.request import NO_INPUTS, Request
from deployments.engine.protocol.sampler_names import CHECKPOINT, SAMPLERS
from deployments.engine.scheduling.device import DeviceMemory

E = TypeVar("E")

Pixels = NDArray[np.int16]


@dataclass
class Tape:
    """Collects an engine's events by request."""

    events: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, event: Event) -> None:
        self.events[event.request_id].append(event)

    def images(self, request_id: str) -> list[Pixels]:
        done = [event for event in self.events[request_id] if isinstance(event, ImageDone)]
        return [pixels_of(event.data) for event in sorted(done, key=lambda event: event.index)]

    def of(self, request_id: str, kind: type[E]) -> list[E]:
        return [event for event in self.events[request_id] if isinstance(event, kind)]


def pixels_of(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


def request_for(model: LoadedModel, name: str, inputs: Inputs = NO_INPUTS, **asked: Any) -> Request:
    previews = asked.pop("previews", 0)
    asked = {"prompt": f"a picture of {name}", "num_inference_steps": 8, "seed": 1} | asked
    params = effective_params(GenerationParams.model_validate(asked), model.spec, inputs.task)
    return Request(name, params, previews, inputs)


def engine_of(
    model: LoadedModel,
    emit: Callable[[Event], None],
    *,
    memory: DeviceMemory | None = None,
    read_adapter: Callable[[LoraFile], Adapter] | None = None,
    **settings: Unpack[EngineOptions],
) -> Engine:
    """An engine with one model, set up by the fields of `EngineConfig`."""
    return Engine([model], emit, EngineConfig(**settings), memory=memory, read_adapter=read_adapter)


def prepare_all(engine: Engine) -> None:
    """Waits until what an engine would have prepared now, a full call's worth, is ready: the next step has it."""
    intake, preparer = engine._intake, engine._intake._preparer
    intake.begin_preparations()
    # What has been read and waits behind the bound is prepared only once the engine has taken something.
    while preparer._is_preparing or (
        intake.is_preparing and preparer.unet_rows + engine.admission.queue.unet_rows < intake._most_ahead
    ):
        time.sleep(0.001)
        # What has been read meanwhile is prepared next.
        intake.begin_preparations()


def run(
    model: LoadedModel,
    requests: Sequence[Request],
    *,
    memory: DeviceMemory | None = None,
    read_adapter: Callable[[LoraFile], Adapter] | None = None,
    **settings: Unpack[EngineOptions],
) -> tuple[Tape, Engine]:
    """All `requests` submitted together to a fresh engine, run to the end."""
    tape = Tape()
    engine = engine_of(model, tape, memory=memory, read_adapter=read_adapter, **settings)
    try:
        for request in requests:
            engine.submit(request)
        # Nobody waits for others' adapters, and these are to be a crowd.
        prepare_all(engine)
        engine.drain()
    finally:
        engine.close()
    return tape, engine


def reference_image(folder: Path, model: LoadedModel, request: Request, index: int = 0) -> Pixels:
    """What a diffusers user gets for image `index` of `request`: the same sampler, a CPU generator with its seed.

    For inpaint, the pixels outside the mask are the input's, as diffusers' users paste them.
    """
    return make_reference(folder, model, request, index)


def make_reference(folder: Path, model: LoadedModel, request: Request, index: int = 0, **options: Any) -> Pixels:
    """The same as `reference_image`, of a pipeline that is called with `options` besides, or instead."""
    kind, nets, is_xl = _parts_of(model, request)
    files = tuple((str(path), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")))
    pipeline, scheduler = _kept_pipeline(folder, kind, nets, is_xl, files)
    # The last sampler may have left its state in the scheduler, or another one in its place.
    pipeline.scheduler = type(scheduler).from_config(scheduler.config)
    use_sampler(pipeline, request.params.sampler)
    made = pipeline(**(arguments([request], index) | options)).images[0]
    return restore_unmasked(made, request).astype(np.int16)


def load_reference(folder: Path, model: LoadedModel, request: Request) -> Any:
    """The pipeline that a diffusers user takes for `request`: the caller's own, to change."""
    pipeline = _load_pipeline(folder, *_parts_of(model, request))
    use_sampler(pipeline, request.params.sampler)
    return pipeline


def use_sampler(pipeline: Any, sampler: str | None) -> None:
    """Swaps the scheduler of a pipeline as loaded, as diffusers' users do; the checkpoint's own needs no swap."""
    if sampler in (None, CHECKPOINT):
        return
    row = SAMPLERS[str(sampler)]
    swapped = getattr(diffusers, row.scheduler)
    pipeline.scheduler = swapped.from_config(pipeline.scheduler.config, **row.settings)


def _parts_of(model: LoadedModel, request: Request) -> tuple[Any, tuple[str, ...], bool]:
    """The class of the pipeline for `request`, the folders of its ControlNets, and whether it is one of SDXL's."""
    is_xl = model.pooled_width is not None
    nets = tuple(str(model.spec.controlnets[control.type]) for control in request.params.controls)
    return pipeline_class(request, is_xl=is_xl), nets, is_xl


@lru_cache(maxsize=16)
def _kept_pipeline(
    folder: Path, kind: Any, nets: tuple[str, ...], is_xl: bool, files: tuple[tuple[str, int], ...]
) -> tuple[Any, Any]:
    """A pipeline of `files` in `folder`, and its scheduler as it was loaded. Loading takes longer than a tiny call."""
    pipeline = _load_pipeline(folder, kind, nets, is_xl)
    return pipeline, pipeline.scheduler


def _load_pipeline(folder: Path, kind: Any, nets: tuple[str, ...], is_xl: bool) -> Any:
    controlnets = [ControlNetModel.from_pretrained(net) for net in nets]
    more: dict[str, Any] = {"controlnet": controlnets if len(nets) > 1 else controlnets[0]} if nets else {}
    more |= {"add_watermarker": False} if is_xl else {"safety_checker": None, "requires_safety_checker": False}
    pipeline = kind.from_pretrained(folder, **more)
    pipeline.set_progress_bar_config(disable=True)
    # diffusers 0.42 looks for the final layer norm where transformers had it before version 5.
    pipeline.text_encoder.__dict__.setdefault("text_model", pipeline.text_encoder)
    return pipeline


def difference(one: Pixels, other: Pixels) -> int:
    """The largest difference of any colour value, in steps of 1/255."""
    return int(np.abs(one - other).max())

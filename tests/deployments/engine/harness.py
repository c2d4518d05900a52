"""Runs requests through an engine, and through diffusers' own pipeline, for comparison."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from numpy.typing import NDArray
from PIL import Image

from deployments.engine.compositing import composite
from deployments.engine.engine import Engine
from deployments.engine.events import Event, ImageDone
from deployments.engine.inputs import Inputs
from deployments.engine.models import LoadedModel
from deployments.engine.params import GenerationParams, effective_params
from deployments.engine.row import NO_INPUTS, Request

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


def run(model: LoadedModel, requests: Sequence[Request], **engine_options: Any) -> tuple[Tape, Engine]:
    """All `requests` submitted together to a fresh engine, run to the end."""
    tape = Tape()
    engine = Engine([model], tape, **engine_options)
    try:
        for request in requests:
            engine.submit(request)
        engine.drain()
    finally:
        engine.close()
    return tape, engine


def reference_image(folder: Path, model: LoadedModel, request: Request, index: int = 0) -> Pixels:
    """What a diffusers user gets for image `index` of `request`: the same sampler, a CPU generator with its seed.

    For inpaint, the pixels outside the mask are the input's, as diffusers' users paste them.
    """
    params, inputs = request.params, request.inputs
    assert params.sampler is not None
    pipeline = _pipeline(folder, model, request)
    pipeline.scheduler = model.samplers.scheduler(params.sampler)
    pipeline.set_progress_bar_config(disable=True)
    # diffusers 0.42 looks for the final layer norm where transformers had it before version 5.
    pipeline.text_encoder.__dict__.setdefault("text_model", pipeline.text_encoder)
    made = pipeline(
        params.prompt,
        negative_prompt=params.negative_prompt,
        guidance_scale=params.guidance_scale,
        num_inference_steps=params.num_inference_steps,
        clip_skip=params.clip_skip or None,
        generator=torch.Generator("cpu").manual_seed(request.seed_of(index)),
        **_picture_arguments(request),
    ).images[0]
    if inputs.image is not None and inputs.mask is not None:
        made = Image.fromarray(composite(np.asarray(made), inputs.image, inputs.mask, params.mask_feather))
    return np.asarray(made).astype(np.int16)


def _pipeline(folder: Path, model: LoadedModel, request: Request) -> Any:
    """The pipeline that a diffusers user would take for `request`, ControlNets included."""
    controls = request.params.controls
    kind: Any = {
        ("text-to-image", False): StableDiffusionPipeline,
        ("image-to-image", False): StableDiffusionImg2ImgPipeline,
        ("inpaint", False): StableDiffusionInpaintPipeline,
        ("text-to-image", True): StableDiffusionControlNetPipeline,
        ("image-to-image", True): StableDiffusionControlNetImg2ImgPipeline,
        ("inpaint", True): StableDiffusionControlNetInpaintPipeline,
    }[request.inputs.task, bool(controls)]
    nets = [ControlNetModel.from_pretrained(model.spec.controlnets[control.type]) for control in controls]
    more: dict[str, Any] = {"controlnet": nets if len(nets) > 1 else nets[0]} if nets else {}
    return kind.from_pretrained(folder, safety_checker=None, requires_safety_checker=False, **more)


def _picture_arguments(request: Request) -> dict[str, Any]:
    params, inputs, task = request.params, request.inputs, request.inputs.task
    arguments: dict[str, Any] = {}
    if task != "image-to-image" or params.controls:
        arguments |= {"width": params.width, "height": params.height}
    if task != "text-to-image":
        arguments |= {"image": Image.fromarray(_given(inputs.image)), "strength": params.strength}
    if task == "inpaint":
        arguments |= {"mask_image": Image.fromarray(_given(inputs.mask))}
    if params.controls:
        hints: list[Any] = [Image.fromarray(hint) for hint in inputs.hints]
        alone = len(hints) == 1
        scales = [control.scale for control in params.controls]
        arguments |= {
            "image" if task == "text-to-image" else "control_image": hints[0] if alone else hints,
            "controlnet_conditioning_scale": scales[0] if alone else scales,
            "control_guidance_start": [control.start for control in params.controls],
            "control_guidance_end": [control.end for control in params.controls],
            "guess_mode": params.guess_mode,
        }
    return arguments


def _given(picture: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    assert picture is not None
    return picture


def difference(one: Pixels, other: Pixels) -> int:
    """The largest difference of any colour value, in steps of 1/255."""
    return int(np.abs(one - other).max())

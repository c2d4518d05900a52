"""diffusers' own pipelines: which one its users take for a request, and how they call it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from PIL import Image

from deployments.engine.compositing import composite
from deployments.engine.inputs import Task
from deployments.engine.row import Request
from deployments.engine.spec import PartSpec, as_part

_KINDS: Mapping[tuple[Task, bool], Any] = {
    ("image-to-image", False): StableDiffusionImg2ImgPipeline,
    ("inpaint", False): StableDiffusionInpaintPipeline,
    ("text-to-image", True): StableDiffusionControlNetPipeline,
    ("image-to-image", True): StableDiffusionControlNetImg2ImgPipeline,
    ("inpaint", True): StableDiffusionControlNetInpaintPipeline,
}


class Pipelines:
    """A pipeline for every kind of request, all over one copy of the weights in `folder`."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, controlnets: Mapping[str, PartSpec | str]
    ) -> None:
        self.text: Any = StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, requires_safety_checker=False, dtype=dtype
        ).to(device)
        # diffusers 0.42 looks for the final layer norm where transformers had it before version 5.
        self.text.text_encoder.__dict__.setdefault("text_model", self.text.text_encoder)
        self._device, self._dtype, self._controlnets = device, dtype, controlnets
        self._others: dict[tuple[Task, tuple[str, ...]], Any] = {}

    def make(self, requests: Sequence[Request], scheduler: Any, index: int = 0) -> list[Image.Image]:
        """Image `index` of each of `requests`, which differ in nothing but prompts, pictures and seeds, in one call.

        Outside a mask it is the picture that was given, as users of diffusers paste it.
        """
        params = requests[0].params
        pipeline = self._pipeline(requests[0])
        pipeline.scheduler = scheduler
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(
            [request.params.prompt for request in requests],
            negative_prompt=[request.params.negative_prompt for request in requests],
            guidance_scale=params.guidance_scale,
            num_inference_steps=params.num_inference_steps,
            clip_skip=params.clip_skip or None,
            generator=[torch.Generator("cpu").manual_seed(request.seed_of(index)) for request in requests],
            **_pictures(requests),
        ).images
        return [_pasted(request, picture) for request, picture in zip(requests, made, strict=True)]

    def _pipeline(self, request: Request) -> Any:
        task, types = request.inputs.task, tuple(control.type for control in request.params.controls)
        if task == "text-to-image" and not types:
            return self.text
        if (task, types) not in self._others:
            nets = [self._controlnet(kind) for kind in types]
            more = {"controlnet": nets if len(nets) > 1 else nets[0]} if nets else {}
            parts = self.text.components | more
            self._others[task, types] = _KINDS[task, bool(types)](**parts, requires_safety_checker=False)
        return self._others[task, types]

    def _controlnet(self, kind: str) -> Any:
        folder = as_part(self._controlnets[kind]).source
        return ControlNetModel.from_pretrained(folder, torch_dtype=self._dtype).to(self._device)


def _pictures(requests: Sequence[Request]) -> dict[str, Any]:
    params, task = requests[0].params, requests[0].inputs.task
    arguments: dict[str, Any] = {}
    if task != "image-to-image" or params.controls:
        arguments |= {"width": params.width, "height": params.height}
    if task != "text-to-image":
        images = [Image.fromarray(request.inputs.image) for request in requests if request.inputs.image is not None]
        arguments |= {"image": images, "strength": params.strength}
    if task == "inpaint":
        masks = [Image.fromarray(request.inputs.mask) for request in requests if request.inputs.mask is not None]
        arguments |= {"mask_image": masks}
    if params.controls:
        hints = [[Image.fromarray(hint) for hint in request.inputs.hints] for request in requests]
        alone = len(params.controls) == 1
        # One request: a hint per net. Several: a hint per request, or for several nets a list of them per request.
        shown = hints[0] if len(requests) == 1 else [net for net, *_ in hints] if alone else hints
        scales = [control.scale for control in params.controls]
        arguments |= {
            "image" if task == "text-to-image" else "control_image": shown,
            "controlnet_conditioning_scale": scales[0] if alone else scales,
            "control_guidance_start": [control.start for control in params.controls],
            "control_guidance_end": [control.end for control in params.controls],
            "guess_mode": params.guess_mode,
        }
    return arguments


def _pasted(request: Request, made: Image.Image) -> Image.Image:
    inputs = request.inputs
    if inputs.image is None or inputs.mask is None:
        return made
    return Image.fromarray(composite(np.asarray(made), inputs.image, inputs.mask, request.params.mask_feather))

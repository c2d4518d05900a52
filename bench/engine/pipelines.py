"""Turns requests into what a user of diffusers would write: which of its pipelines, and with which arguments.

The benches and the engine's tests both compare with this, so that "the same picture" is defined in one place.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from diffusers import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from deployments.engine.conditioning.compositing import composite
from deployments.engine.protocol.inputs import ImageArray, Mask, Task
from deployments.engine.protocol.request import Request

_CLASSES: Final[Mapping[tuple[Task, bool], Any]] = MappingProxyType(
    {
        ("text-to-image", False): StableDiffusionPipeline,
        ("image-to-image", False): StableDiffusionImg2ImgPipeline,
        ("inpaint", False): StableDiffusionInpaintPipeline,
        ("text-to-image", True): StableDiffusionControlNetPipeline,
        ("image-to-image", True): StableDiffusionControlNetImg2ImgPipeline,
        ("inpaint", True): StableDiffusionControlNetInpaintPipeline,
    }
)
_XL_CLASSES: Final[Mapping[tuple[Task, bool], Any]] = MappingProxyType(
    {
        ("text-to-image", False): StableDiffusionXLPipeline,
        ("image-to-image", False): StableDiffusionXLImg2ImgPipeline,
        ("inpaint", False): StableDiffusionXLInpaintPipeline,
        ("text-to-image", True): StableDiffusionXLControlNetPipeline,
        ("image-to-image", True): StableDiffusionXLControlNetImg2ImgPipeline,
        ("inpaint", True): StableDiffusionXLControlNetInpaintPipeline,
    }
)


def pipeline_class(request: Request, *, is_xl: bool = False) -> Any:
    """Returns the pipeline that a diffusers user would take for `request`, of Stable Diffusion or of its XL."""
    return (_XL_CLASSES if is_xl else _CLASSES)[request.inputs.task, bool(request.params.controls)]


def arguments(requests: Sequence[Request], index: int = 0) -> dict[str, Any]:
    """What one call needs to make image `index` of each of `requests`; for one call, because generators are used up.

    The requests must be alike in all but prompts, seeds and pictures. Raises ValueError for several requests of several
    ControlNets each: not all of diffusers' pipelines take those.
    """
    shared = requests[0].params
    negative = [request.params.negative_prompt for request in requests]
    return {
        "prompt": [request.params.prompt for request in requests],
        # Not "": to Stable Diffusion XL the empty text is a negative prompt, too.
        "negative_prompt": negative if any(negative) else None,
        "guidance_scale": shared.guidance_scale,
        "num_inference_steps": shared.num_inference_steps,
        "clip_skip": shared.clip_skip or None,
        "generator": [torch.Generator("cpu").manual_seed(request.seed_of(index)) for request in requests],
        **_picture_arguments(requests),
        **_control_arguments(requests),
    }


def restore_unmasked(made: Image.Image, request: Request) -> ImageArray:
    """Returns `made` [H, W, 3] with the caller's own pixels outside an inpaint request's mask, as the server does.

    Where only a part was made, diffusers has put them back.
    """
    picture = np.asarray(made.convert("RGB"))
    image, mask = request.inputs.image, request.inputs.mask
    if image is None or mask is None or request.inputs.whole is not None:
        return picture
    return composite(picture, image, mask, request.params.mask_feather)


def _picture_arguments(requests: Sequence[Request]) -> dict[str, Any]:
    params, task = requests[0].params, requests[0].inputs.task
    found: dict[str, Any] = {}
    if task != "image-to-image" or params.controls:
        found |= {"width": params.width, "height": params.height}
    if (whole := requests[0].inputs.whole) is not None:
        # Of a crop diffusers takes one picture, and no list.
        padding = {"padding_mask_crop": params.padding_mask_crop, "strength": params.strength}
        return found | {"image": _image(whole.image), "mask_image": _image(whole.mask), **padding}
    if task != "text-to-image":
        found |= {"image": [_image(request.inputs.image) for request in requests], "strength": params.strength}
    if task == "inpaint":
        found |= {"mask_image": [_image(request.inputs.mask) for request in requests]}
    return found


def _control_arguments(requests: Sequence[Request]) -> dict[str, Any]:
    first = requests[0]
    controls = first.params.controls
    if not controls:
        return {}
    several = len(controls) > 1
    if several and len(requests) > 1:
        raise ValueError("requests with several ControlNets must be made one by one")
    scales = [control.scale for control in controls]
    hints = first.inputs.hints if several else [request.inputs.hints[0] for request in requests]
    return {
        "image" if first.inputs.task == "text-to-image" else "control_image": [_image(hint) for hint in hints],
        "controlnet_conditioning_scale": scales if several else scales[0],
        "control_guidance_start": [control.start for control in controls],
        "control_guidance_end": [control.end for control in controls],
        "guess_mode": first.params.guess_mode,
    }


def _image(picture: ImageArray | Mask | None) -> Image.Image:
    assert picture is not None
    return Image.fromarray(picture)

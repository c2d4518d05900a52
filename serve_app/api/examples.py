"""What the API's documentation says of the fields, and examples that can be tried."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deployments.engine.params import PICTURE_FIELDS, GenerationParams
from deployments.masks import MASK_TYPES

_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "What to draw. `(word:1.2)` weighs a word; `BREAK` starts a new chunk of 77 tokens.",
        "negative_prompt": "What to avoid. Without effect when `guidance_scale` is 1 or less.",
        "width": "Pixels; the model's native size if left out.",
        "height": "Pixels; the model's native size if left out.",
        "num_images": "How many images of this prompt; image i uses `seed + i`.",
        "guidance_scale": "How closely to follow the prompt; 1 or less switches guidance off, for half the work.",
        "num_inference_steps": "Denoising steps.",
        "seed": "The seed of the first image. One is drawn, and told in the answer, if left out or -1.",
        "model_name": "A name or alias from `/ads/v2/diffusion/models`; the first model if left out.",
        "style_preset": "A name from `/ads/v2/diffusion/styles`, or free text that is appended to the prompt.",
        "sampler": "A name, diffusers class or A1111 label from `/ads/v2/diffusion/samplers`; else the model's own.",
        "clip_skip": "How many of the text encoder's last layers to leave out.",
        "strength": "How far to leave the picture given, from 0 (not included) to 1.",
        "mask_feather": "Pixels inside the mask's edge over which old and new mix.",
        "controls": "The ControlNets, one per control image: `type`, `scale`, `start`, `end`.",
        "guess_mode": "Lets ControlNets act on the prompted half only.",
        "output_format": "The files' format. An `Accept: image/...` header wins over it.",
        "priority": "Who waits for whom; nothing waits for ever. A `high` image may take a running `low` one's place.",
        "deadline_ms": "Refused at once where it cannot be ready in time, and dropped once the time has passed.",
    }
)

_EXAMPLES: Mapping[str, Any] = MappingProxyType(
    {
        "advertisement": {
            "summary": "An advertisement",
            "value": {
                "prompt": "Professional advertisement for premium coffee",
                "negative_prompt": "blurry, low quality",
                "width": 512,
                "height": 512,
                "num_images": 1,
                "guidance_scale": 7.5,
                "num_inference_steps": 50,
                "seed": 42,
                "model_name": "runwayml/stable-diffusion-v1-5",
            },
        },
        "quick": {
            "summary": "Small and quick",
            "value": {"prompt": "a red cup on a blue background", "num_inference_steps": 20, "style_preset": "luxury"},
        },
    }
)


_PICTURE = {"type": "string", "format": "binary"}
_FIT = {
    "type": "string",
    "enum": ["cover", "pad", "stretch"],
    "default": "cover",
    "description": "How pictures of another shape become the request's: cropped, filled up, or distorted.",
}
_MASK_TYPE = {"type": "string", "enum": list(MASK_TYPES), "description": "Instead of a mask."}
_NUMBERS = {"type": "array", "items": {"type": "number"}}

# What a door's form holds besides parameters, and which of it must be there.
_FORMS: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] = MappingProxyType(
    {
        "image-to-image": ({"init_image": _PICTURE, "fit": _FIT}, ("init_image",)),
        "inpaint": (
            {
                "image": _PICTURE,
                "mask": _PICTURE | {"description": "White is painted anew, black is kept. Of the image's size."},
                "mask_type": _MASK_TYPE,
                "fit": _FIT,
            },
            ("image",),
        ),
        "controlnet": (
            {
                "control_image": {"type": "array", "items": _PICTURE},
                "controlnet_type": {"type": "array", "items": {"type": "string"}},
                "controlnet_conditioning_scale": _NUMBERS,
                "control_guidance_start": _NUMBERS,
                "control_guidance_end": _NUMBERS,
                "preprocess": {"type": "boolean", "description": "Make the hint from a photo."},
                "init_image": _PICTURE,
                "mask": _PICTURE,
                "mask_type": _MASK_TYPE,
                "fit": _FIT,
            },
            ("control_image",),
        ),
    }
)


def params_schema() -> dict[str, Any]:
    """The JSON schema of `GenerationParams`, with a description of every field."""
    schema = GenerationParams.model_json_schema()
    # Inlined: a reference would point into a document of its own.
    definitions = schema.pop("$defs", {})
    schema["properties"]["controls"]["items"] = definitions.get("ControlSettings", {})
    for name, description in _FIELDS.items():
        schema["properties"][name]["description"] = description
    return schema


def request_body() -> dict[str, Any]:
    """OpenAPI's request body of text-to-image."""
    schema = params_schema()
    for name in PICTURE_FIELDS:
        del schema["properties"][name]
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "examples": dict(_EXAMPLES)}},
    }


def form_body(door: str) -> dict[str, Any]:
    """OpenAPI's request body of a door that takes pictures."""
    parts, required = _FORMS[door]
    whole = {"type": "string", "description": "All parameters at once, as a JSON object, instead of fields."}
    properties = {**params_schema()["properties"], "params": whole, **parts}
    if door != "controlnet":
        for name in ("controls", "guess_mode"):
            del properties[name]
    if door == "image-to-image":
        del properties["mask_feather"]
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def answers() -> dict[int | str, dict[str, Any]]:
    """OpenAPI's answers of every door."""
    return {
        200: success(),
        404: failure("There is no such model."),
        413: failure("The body is too large."),
        422: failure("A field breaks a rule; `errors` lists all of them."),
        503: failure("The queue is full, or the engine is not there. Retry-After says when to come back."),
    }


def success() -> dict[str, Any]:
    """OpenAPI's other forms of a 200 answer, besides JSON."""
    images = {f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in ("png", "webp", "jpeg")}
    return {
        "description": "The images: JSON, one image's bytes, or a stream, as the Accept header says.",
        "content": {**images, "text/event-stream": {"schema": {"type": "string"}}},
    }


def failure(description: str) -> dict[str, Any]:
    """OpenAPI's form of an error answer."""
    text, code = {"type": "string"}, {"type": "string"}
    fault = {"type": "object", "properties": {"pointer": text, "code": code, "message": text}}
    error = {"type": "object", "properties": {"message": text, "type": text, "param": text, "code": code}}
    properties = {
        "type": text,
        "title": text,
        "status": {"type": "integer"},
        "detail": text,
        "instance": text,
        "error": error,
        "errors": {"type": "array", "items": fault},
        "request_id": text,
        "retryable": {"type": "boolean"},
    }
    schema = {"type": "object", "properties": properties}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}

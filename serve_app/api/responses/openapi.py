"""Descriptions of the API's fields and answers for OpenAPI, and examples to try."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from deployments.engine.protocol.params import IMAGE_FIELDS, INPAINT_FIELDS, GenerationParams
from deployments.uploads.masks import MASK_TYPES
from serve_app.api.parsing.callbacks import callback_schema
from serve_app.api.responses.json_schema import inline_schema

_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "What to draw. `(word:1.2)` weighs a word; `BREAK` starts a new chunk of 77 tokens.",
        "negative_prompt": "What to avoid. Without effect when `guidance_scale` is 1 or less.",
        "width": "Pixels; the model's native size if left out.",
        "height": "Pixels; the model's native size if left out.",
        "num_images": "How many images of this prompt; image i uses `seed + i`.",
        "guidance_scale": "How closely to follow the prompt; 1 or less switches guidance off, for half the work. "
        "A model may have a default of its own, which its row in `/ads/v2/diffusion/models` tells.",
        "num_inference_steps": "Denoising steps. A model may have a default of its own, as for `guidance_scale`.",
        "seed": "The seed of the first image. If left out or -1, one is drawn, and returned in the answer.",
        "model_name": "A name or alias from `/ads/v2/diffusion/models`; the first model if left out.",
        "style_preset": "A name from `/ads/v2/diffusion/styles`, or free text that is appended to the prompt.",
        "sampler": "A name, diffusers class or A1111 label from `/ads/v2/diffusion/samplers`; else the model's own.",
        "clip_skip": "How many of the text encoder's last layers to leave out.",
        "strength": "How far to change the given image, from 0 (exclusive) to 1.",
        "mask_feather": "Pixels inside the mask's edge over which old and new mix.",
        "mask_inverted": "The mask says what is kept, not what is repainted.",
        "mask_fill": "What the masked part begins from, where `strength` is below 1: the image itself (`original`), "
        "the colours around it (`surroundings`), latent `noise`, or `zero` latents.",
        "padding_mask_crop": "Makes only the masked part, with that many pixels around it, at `width` x `height`, and "
        "pastes it back into the image at its own size.",
        "controls": "The ControlNets, one per control image: `type`, `scale`, `start`, `end`, `preprocess`.",
        "loras": "LoRAs by their names in `/ads/v2/diffusion/loras`, each with a `scale` (1).",
        "guess_mode": "Lets ControlNets act on the prompted half only.",
        "output_format": "The files' format. An `Accept: image/...` header wins over it.",
        "output_quality": "Of a webp or jpeg file; 92 if left out.",
        "metadata": "How much a file tells of how it was made: `minimal` leaves out the prompts.",
        "priority": "Higher ones go first; nothing waits for ever. A `high` image may replace a running `low` one.",
        "cache": "`reuse`: without a seed, any seed's result will do; `similar`: also early states of others whose "
        "prompts were near; `refresh`: a new result; `off`: no caching.",
        "hires": "A second pass over the result, enlarged `scale` times by `upscaler` (`latent`, `lanczos`, or a "
        "name from `/ads/v2/diffusion/upscalers`), with "
        "`strength` and `steps` as in image-to-image.",
        "output_size": "Width and height in pixels that the finished image is resized to, of any shape.",
        "output_fit": "How it becomes that shape: cropped, or padded with its edges' colours.",
        "local_contrast": "Evens out light and dark by regions (CLAHE's clip limit); 0 leaves it as it is, 2 is usual.",
        "contrast": "Multiplies the finished image's contrast.",
        "sharpen": "Sharpens the finished image; 0.5 is usual.",
        "ad_format": "The name of an `output_size`, from `/ads/v2/diffusion/ad-formats`.",
        "template": "The name of a prompt with places, from `/ads/v2/diffusion/templates`.",
        "template_values": "What goes into the template's places, by their names.",
        "guidance_interval": "Guides only the steps from one share of them to another; the others take half the work.",
        "deep_cache": "n > 1 runs the UNet's deep blocks in every n-th step only: quicker, and a slightly other image.",
        "exact": "Makes the bytes of an image independent of what runs beside it, at a higher cost.",
        "deadline_ms": "The request is refused at once if it cannot be ready in time, and dropped when time is up.",
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


PICTURE = {"type": "string", "format": "binary"}
FIT = {
    "type": "string",
    "enum": ["cover", "pad", "stretch"],
    "default": "cover",
    "description": "How images of another shape are fitted: cropped, padded, or distorted.",
}
MASK_TYPE = {"type": "string", "enum": list(MASK_TYPES), "description": "Instead of a mask."}
_MASK_ALPHA = {
    "type": "string",
    "enum": ["strokes", "holes"],
    "description": "What a mask with transparency repaints: its visible part, or its transparent part. "
    "Needed only if its colours leave that open.",
}
_NUMBERS = {"type": "array", "items": {"type": "number"}}

# The parts of an endpoint's form besides parameters, and which of them are required.
_FORMS: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] = MappingProxyType(
    {
        "image-to-image": ({"init_image": PICTURE, "fit": FIT}, ("init_image",)),
        "inpaint": (
            {
                "image": PICTURE,
                "mask": PICTURE | {"description": "White is repainted, black is kept. Of the image's size."},
                "mask_type": MASK_TYPE,
                "mask_alpha": _MASK_ALPHA,
                "fit": FIT,
            },
            ("image",),
        ),
        "controlnet": (
            {
                "control_image": {"type": "array", "items": PICTURE},
                "controlnet_type": {"type": "array", "items": {"type": "string"}},
                "controlnet_conditioning_scale": _NUMBERS,
                "control_guidance_start": _NUMBERS,
                "control_guidance_end": _NUMBERS,
                "preprocess": {"type": "boolean", "description": "Make the hint from a photo."},
                "init_image": PICTURE,
                "mask": PICTURE,
                "mask_type": MASK_TYPE,
                "mask_alpha": _MASK_ALPHA,
                "fit": FIT,
            },
            ("control_image",),
        ),
    }
)


def params_schema() -> dict[str, Any]:
    """The JSON schema of `GenerationParams`, with a description of every field."""
    schema = inline_schema(GenerationParams)
    for name, description in _FIELDS.items():
        schema["properties"][name]["description"] = description
    return schema


_ROW = {"type": "object", "additionalProperties": {"type": "string"}}
_EXPANSION = {
    "type": ["object", "null"],
    "description": "Makes each request several: for every row of values, every format, every variant of its prompt.",
    "properties": {
        "values": {"type": ["array", "null"], "items": _ROW, "description": "Rows of template values."},
        "csv": {"type": ["string", "null"], "description": "The same as CSV; its first line has the names."},
        "ad_formats": {"type": ["array", "null"], "items": {"type": "string"}},
        "variants": {
            "anyOf": [{"type": "integer", "minimum": 1}, {"enum": ["all"]}, {"type": "null"}],
            "description": "How many texts to draw from a prompt with `{red|blue}` or `__colour__`, by its seed.",
        },
    },
    "additionalProperties": False,
}


def extra_of(body: dict[str, Any]) -> dict[str, Any]:
    """The additions to the OpenAPI description of an endpoint that takes `body`."""
    description = "1 to 255 characters, a UUID for example: the same request with it runs only once."
    schema = {"type": "string", "minLength": 1, "maxLength": 255}
    key = {"name": "Idempotency-Key", "in": "header", "description": description, "schema": schema}
    return {"requestBody": body, "parameters": [key]}


def request_body() -> dict[str, Any]:
    """The OpenAPI request body of text-to-image."""
    schema = params_schema()
    for name in IMAGE_FIELDS:
        del schema["properties"][name]
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "examples": dict(_EXAMPLES)}},
    }


def batch_body() -> dict[str, Any]:
    """The OpenAPI request body of a batch."""
    entry = request_body()["content"]["application/json"]["schema"]
    fields = entry["properties"]
    anything = {"description": "An invalid entry fails alone: its `status` in the answer says so."}
    schema = {
        "type": "object",
        "properties": {
            "requests": {"type": "array", "minItems": 1, "items": {"anyOf": [entry, anything]}},
            "expand": _EXPANSION,
            "priority": fields["priority"] | {"description": "For entries without their own."},
            "deadline_ms": fields["deadline_ms"] | {"description": "For entries without their own; from now on."},
            **callback_schema(),
        },
        "required": ["requests"],
        "additionalProperties": False,
    }
    example = {
        "requests": [
            {"prompt": "Modern coffee advertisement", "guidance_scale": 7.5},
            {"prompt": "Luxury coffee advertisement", "guidance_scale": 8.0},
        ],
        "priority": "normal",
    }
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def form_body(endpoint: str) -> dict[str, Any]:
    """The OpenAPI request body of an endpoint that takes images."""
    parts, required = _FORMS[endpoint]
    whole = {"type": "string", "description": "All parameters at once, as a JSON object, instead of as fields."}
    properties = {**params_schema()["properties"], "params": whole, **parts}
    if endpoint != "controlnet":
        for name in ("controls", "guess_mode"):
            del properties[name]
    if endpoint == "image-to-image":
        for name in INPAINT_FIELDS:
            del properties[name]
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def hint_body(fields: Collection[str]) -> dict[str, Any]:
    """The OpenAPI request body of the endpoint that makes hints, which takes these parameters."""
    known = params_schema()["properties"]
    properties = {"control_image": PICTURE, "controlnet_type": {"type": "string"}, "fit": FIT}
    properties |= {name: known[name] for name in fields}
    schema = {"type": "object", "properties": properties, "required": ["control_image", "controlnet_type"]}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def answers() -> dict[int | str, dict[str, Any]]:
    """The OpenAPI answers of every endpoint that generates."""
    return {
        200: success_response(),
        400: error_response("The body, or the Idempotency-Key, cannot be read."),
        401: error_response("This server requires a key, and the request has none, or an unknown one."),
        403: error_response("The key does not permit this, or not with that priority."),
        409: error_response("The first request with this Idempotency-Key is still running."),
        404: error_response("There is no such model."),
        406: error_response("None of the types in the Accept header can answer this request."),
        408: error_response("The body took too long to arrive."),
        413: error_response("The body is too large."),
        415: error_response("The body is of another type, or compressed."),
        422: error_response("A field breaks a rule; `errors` lists all of them."),
        499: error_response("The request was cancelled by its id."),
        500: error_response("An internal error. The server's log has it under the request id."),
        429: error_response("The caller is over its limits. Retry-After says when to come back."),
        503: error_response("The queue is full, or the engine is unavailable. Retry-After says when to come back."),
        504: error_response("The images cannot be ready by the deadline."),
    }


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI error answers with these statuses."""
    everywhere = answers()
    return {status: everywhere[status] for status in statuses}


def batch_answers() -> dict[int | str, dict[str, Any]]:
    """The OpenAPI answers of the endpoint for batches."""
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    return answers() | {
        200: {
            "description": "Each entry's result: JSON, or a stream, as the Accept header says.",
            "content": stream,
        },
        202: {"description": "A job; `Location` is its URL."},
    }


def job_answers() -> dict[int | str, dict[str, Any]]:
    """The OpenAPI error answers of the endpoints for jobs and running requests."""
    everywhere = answers()
    return {
        401: everywhere[401],
        403: error_response("The key does not permit this."),
        404: error_response("There is no such job of this caller's, or nothing at that place in it."),
        422: error_response("The path names no place in a job."),
        500: everywhere[500],
        503: error_response("Jobs are kept in Redis, which does not answer. Retry-After says when to come back."),
    }


def success_response() -> dict[str, Any]:
    """The forms of a 200 answer besides JSON, for OpenAPI."""
    images = {f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in ("png", "webp", "jpeg")}
    return {
        "description": "The images: JSON, one image's bytes, or a stream, as the Accept header says.",
        "content": {**images, "text/event-stream": {"schema": {"type": "string"}}},
    }


def error_response(description: str) -> dict[str, Any]:
    """An error answer, for OpenAPI."""
    text, code = {"type": "string"}, {"type": "string"}
    fault = {"type": "object", "properties": {"pointer": text, "code": code, "message": text}}
    field = {"type": ["string", "null"]}
    error = {"type": "object", "properties": {"message": text, "type": text, "param": field, "code": code}}
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

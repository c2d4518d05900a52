"""Descriptions of the API's fields and answers for OpenAPI, and examples to try."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from deployments.engine.protocol.params import IMAGE_FIELDS, INPAINT_FIELDS
from deployments.engine.protocol.settings import MAX_REFERENCES
from deployments.uploads.masks import MASK_TYPES
from serve_app.api.parsing.callbacks import callback_schema
from serve_app.api.responses.parameter_schema import params_schema as params_schema

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


_NOT_IN_FORMS: Mapping[str, Collection[str]] = MappingProxyType(
    {
        "text-to-image": IMAGE_FIELDS,
        "image-to-image": ("controls", "guess_mode", *INPAINT_FIELDS),
        "inpaint": ("controls", "guess_mode"),
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
REFERENCE_IMAGES = {
    "type": "array",
    "items": PICTURE,
    "maxItems": MAX_REFERENCES,
    "description": "Pictures that the image takes after, by an IP-Adapter of the model's.",
}
_WHOLE = {"type": "string", "description": "All parameters at once, as a JSON object, instead of as fields."}
_NUMBERS = {"type": "array", "items": {"type": "number"}}

# The parts of an endpoint's form besides parameters, and which of them are required.
_FORMS: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] = MappingProxyType(
    {
        "text-to-image": ({"reference_images": REFERENCE_IMAGES}, ()),
        "image-to-image": (
            {"init_image": PICTURE, "fit": FIT, "reference_images": REFERENCE_IMAGES},
            ("init_image",),
        ),
        "inpaint": (
            {
                "image": PICTURE,
                "mask": PICTURE | {"description": "White is repainted, black is kept. Of the image's size."},
                "mask_type": MASK_TYPE,
                "mask_alpha": _MASK_ALPHA,
                "fit": FIT,
                "reference_images": REFERENCE_IMAGES,
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
                "reference_images": REFERENCE_IMAGES,
            },
            ("control_image",),
        ),
    }
)


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


def text_body() -> dict[str, Any]:
    """The OpenAPI request body of text-to-image: JSON, or a form where reference images come as files."""
    schema = _text_schema()
    schema["properties"]["reference_images"] = base64_pictures(REFERENCE_IMAGES)
    content = {"application/json": {"schema": schema, "examples": dict(_EXAMPLES)}}
    return {"required": True, "content": content | form_body("text-to-image")["content"]}


def base64_pictures(files: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a list of pictures in JSON, of that of a form's `files`."""
    text = {"type": "string", "contentEncoding": "base64"}
    return {**files, "type": ["array", "null"], "items": text}


def _text_schema() -> dict[str, Any]:
    """The parameters of requests that start from no image."""
    schema = params_schema()
    for name in IMAGE_FIELDS:
        del schema["properties"][name]
    return schema


def batch_body() -> dict[str, Any]:
    """The OpenAPI request body of a batch."""
    entry = _text_schema()
    fields = entry["properties"]
    anything = {"description": "An invalid entry fails alone: its `status` in the answer says so."}
    schema = {
        "type": "object",
        "properties": {
            "requests": {"type": "array", "minItems": 1, "items": {"anyOf": [entry, anything]}},
            "expand": _EXPANSION,
            "reference_images": base64_pictures(REFERENCE_IMAGES)
            | {"description": "Pictures that all entries take after, as each one's `reference` says."},
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
    properties = {**params_schema()["properties"], "params": _WHOLE, **parts}
    for name in _NOT_IN_FORMS.get(endpoint, ()):
        del properties[name]
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def style_transfer_body(most: int, form_callbacks: Collection[str]) -> dict[str, Any]:
    """The OpenAPI request body of the endpoint that restyles at most that many pictures.

    `form_callbacks` are the fields of callbacks that its form has; JSON has all of them.
    """
    images = {"type": "array", "items": PICTURE, "minItems": 1, "maxItems": most}
    files = {"images": images | {"description": "What is restyled."}, "reference_images": REFERENCE_IMAGES}
    known = params_schema()["properties"]
    shared = {name: field for name, field in known.items() if name not in _NOT_IN_FORMS["image-to-image"]}
    shared["fit"], callbacks = FIT, callback_schema()
    form = shared | files | {name: callbacks[name] for name in form_callbacks} | {"params": _WHOLE}
    texts = shared | callbacks | {name: base64_pictures(pictures) for name, pictures in files.items()}
    required = ["images", "reference_images"]
    content: dict[str, Any] = {
        kind: {"schema": {"type": "object", "properties": properties, "required": required}}
        for kind, properties in (("multipart/form-data", form), ("application/json", texts))
    }
    content["application/json"]["schema"]["additionalProperties"] = False
    return {"required": True, "content": content}


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


def submission_answers() -> dict[int | str, dict[str, Any]]:
    """The OpenAPI answers of an endpoint that always submits a job."""
    everywhere = answers()
    del everywhere[200]
    return everywhere | {202: {"description": "A job; `Location` is its URL."}}


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

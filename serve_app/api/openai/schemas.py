"""Descriptions of OpenAI's fields, and ours beside them, for the OpenAPI document."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from serve_app.api.openai.edits import PREPROCESS
from serve_app.api.openai.fields import STEPS, UNSUPPORTED, ImagesFields, our_fields
from serve_app.api.parsing.picture_options import FIT, MASK_TYPE
from serve_app.api.responses import openapi

_STEPS: Final = ", ".join(f"{name} {steps}" for name, steps in STEPS.items())

_DESCRIPTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "model": "A name or alias from `/v1/models`; the default model if left out.",
        "n": "How many images; image i uses `seed + i`.",
        "size": "WIDTHxHEIGHT in pixels, multiples of 8 from 64 to 2048; `auto` is the model's native size.",
        "quality": f"Stands for denoising steps: {_STEPS}. `num_inference_steps` goes before it.",
        "output_format": "The files' format.",
        "output_compression": "The quality of a WebP or JPEG file.",
        "response_format": "`b64_json`; or `url`, where the server keeps images for a while.",
        "background": "Images are always opaque.",
        "style": "Without effect; `style_preset` has one.",
        "moderation": "Without effect.",
        "user": "Repeated in the answer as `safety_identifier`.",
        "safety_identifier": "Repeated in the answer.",
        "stream": "Answers with server-sent events.",
        "partial_images": "Previews of each image while it is made; in a stream only.",
    }
)

_PICTURES: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "image": openapi.PICTURE
        | {"description": "The image to change, one for each of `controls`, and images to take after."},
        "image[]": {"type": "array", "items": openapi.PICTURE, "description": "As `image`, for lists."},
        "mask": openapi.PICTURE | {"description": "Transparent where the image is repainted. Of the image's size."},
        FIT: openapi.FIT,
        MASK_TYPE: openapi.MASK_TYPE,
        PREPROCESS: {"type": "boolean", "description": "Make the ControlNets' hints from photos."},
    }
)


def generation_body() -> dict[str, Any]:
    """The OpenAPI request body of a generation."""
    schema = _fields(edits=False) | {"required": ["prompt"], "additionalProperties": False}
    example = {"prompt": "a red cup on a blue background", "size": "256x256", "quality": "low", "seed": 7}
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def edit_body() -> dict[str, Any]:
    """The OpenAPI request body of an edit."""
    schema = _fields(edits=True)
    # Which name the pictures have is the client's choice.
    schema |= {"properties": schema["properties"] | dict(_PICTURES), "required": ["prompt"]}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def answers() -> dict[int | str, dict[str, Any]]:
    """The OpenAPI answers of both endpoints: what others call 422 is 400 here, and Accept is not asked."""
    answers = openapi.answers() | {
        200: {
            "description": "The images: JSON, or a stream, as `stream` says.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        400: openapi.error_response("The body cannot be read, or a field breaks a rule; `errors` lists all of them."),
    }
    return {status: answer for status, answer in answers.items() if status not in (406, 422)}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema with null, which clients send for what their callers have left out."""
    return schema if "anyOf" in schema else {"anyOf": [schema, {"type": "null"}]}


def _fields(*, edits: bool) -> dict[str, Any]:
    ours, own = openapi.params_schema()["properties"], ImagesFields.model_json_schema()["properties"]
    own["size"] |= {"pattern": "^(auto|[0-9]{1,5}x[0-9]{1,5})$"}
    own["response_format"] |= {"enum": ["b64_json", "url"]}
    properties = {"prompt": ours["prompt"]}
    properties |= {name: _nullable(own[name]) | {"description": text} for name, text in _DESCRIPTIONS.items()}
    properties |= {name: ours[name] for name in our_fields(edits=edits)}
    unsupported = {name: {"type": "null", "description": "Not supported."} for name in UNSUPPORTED}
    return {"type": "object", "properties": properties | ({} if edits else unsupported)}

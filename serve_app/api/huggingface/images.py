"""The endpoints for Hugging Face's inference clients: one per model, for text and pictures, answered by an image."""

import asyncio
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response

from deployments.engine.protocol.params import INPAINT_FIELDS
from serve_app.api.dependencies import ServiceDep
from serve_app.api.huggingface.errors import inference_errors
from serve_app.api.huggingface.fields import (
    NOT_HERE,
    PROMPT,
    SCHEDULER,
    TARGET_SIZE,
    InferenceRequest,
    read_inference_body,
    read_picture,
)
from serve_app.api.parsing.body import read_body, read_json_object
from serve_app.api.parsing.header_values import parse_header_value
from serve_app.api.problems import Problem
from serve_app.api.responses import openapi
from serve_app.api.responses.delivery import deliver_image
from serve_app.service import DiffusionService

router = APIRouter(prefix="/hf", tags=["huggingface"])

# What clients send of whose type they know nothing.
_UNTYPED: Final = ("", "application/octet-stream")

_PICTURES: Final = ("image/png", "image/jpeg", "image/webp")

Name = Annotated[str, Path(max_length=200)]


def _request_body() -> dict[str, Any]:
    parameters = {"type": ["object", "null"], "properties": _parameters(), "additionalProperties": False}
    properties = {
        "inputs": {"type": "string", "description": "The prompt; or a picture in base64, to be changed."},
        "parameters": parameters,
    }
    body = {"type": "object", "properties": properties, "required": ["inputs"], "additionalProperties": False}
    pictures = {name: {"schema": openapi.PICTURE} for name in _PICTURES}
    return {"required": True, "content": {"application/json": {"schema": body}, **pictures}}


def _parameters() -> dict[str, Any]:
    """Every parameter that is taken here, by the names that clients know; each may be null."""
    ours = openapi.params_schema()["properties"]
    sides = {name: ours[name] for name in ("width", "height")}
    theirs = {
        PROMPT: ours["prompt"] | {"description": "Of a picture in `inputs`: what it is changed to."},
        SCHEDULER: ours["sampler"],
        TARGET_SIZE: {
            "type": "object",
            "properties": sides,
            "additionalProperties": False,
            "description": "Width and height in one.",
        },
        "strength": ours["strength"] | {"description": f"{ours['strength']['description']} For pictures only."},
    }
    left_out = {*NOT_HERE, *INPAINT_FIELDS}
    fields = {name: field for name, field in ours.items() if name not in left_out} | theirs
    return {name: {"anyOf": [field, {"type": "null"}]} for name, field in fields.items()}


def _answers() -> dict[int | str, dict[str, Any]]:
    images = {name: {"schema": openapi.PICTURE} for name in _PICTURES}
    return openapi.answers() | {200: {"description": "The image's file.", "content": images}}


@router.post("/{model}", response_class=Response, openapi_extra=openapi.extra_of(_request_body()), responses=_answers())
async def infer(request: Request, model: Name, service: ServiceDep) -> Response:
    """Makes an image from a prompt, or changes a picture, as `InferenceClient`'s tasks of these names ask for.

    `inputs` is the prompt. With a `prompt` among the `parameters` it is a picture in base64; a body that is a picture
    is changed without a prompt.
    """
    return await _answer(request, service, model)


@router.post("/{owner}/{model}", response_class=Response, include_in_schema=False)
async def infer_owned(request: Request, owner: Name, model: Name, service: ServiceDep) -> Response:
    """As `infer`: a model's name may have a slash."""
    return await _answer(request, service, f"{owner}/{model}")


async def _answer(request: Request, service: DiffusionService, model: str) -> Response:
    # Before anything large is read.
    name = service.model(model).name
    asked = await _read_request(request, name)
    errors = partial(inference_errors, asked.places)
    with errors():
        return await deliver_image(request, service, asked.params, uploads=asked.uploads, errors=errors)


async def _read_request(request: Request, model: str) -> InferenceRequest:
    most = request.app.state.max_upload_bytes
    media_type = _media_type_of(request)
    if media_type not in (*_PICTURES, *_UNTYPED):
        return await asyncio.to_thread(read_inference_body, await read_json_object(request, most), model)
    if any(coding.strip().lower() != "identity" for coding in request.headers.getlist("content-encoding")):
        raise Problem(415, "unsupported_content_encoding", "send the body without Content-Encoding")
    return read_picture(await read_body(request, most), model)


def _media_type_of(request: Request) -> str:
    try:
        return parse_header_value(",".join(request.headers.getlist("content-type")))[0]
    except ValueError:
        return ""

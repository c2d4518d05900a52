"""Reads the reference images that requests bring: files of a form, or base64 in a JSON body."""

import asyncio
from typing import Any, Final

from starlette.requests import Request

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.settings import MAX_REFERENCES
from serve_app.api.parsing.base64_pictures import decode_picture
from serve_app.api.parsing.body import read_json_object
from serve_app.api.parsing.forms import is_form, read_form
from serve_app.api.parsing.validation import read_params

REFERENCE_IMAGES: Final = "reference_images"


async def read_text_request(request: Request) -> tuple[GenerationParams, Uploads | None]:
    """Reads a request that starts from no image, and its reference images if it has any.

    It is JSON, with pictures in base64, or a form. Raises Problem and InvalidParameter.
    """
    if is_form(request):
        form = await read_form(request, request.app.state.max_upload_bytes, (REFERENCE_IMAGES,), ())
        params, references = form.read_params(), form.files.get(REFERENCE_IMAGES, ())
    else:
        body = await read_json_object(request, request.app.state.max_body_bytes)
        references = await take_references(body)
        params = read_params(body)
    return params, Uploads(references=references) if references else None


async def take_references(body: dict[str, Any]) -> tuple[bytes, ...]:
    """Takes the reference images out of a JSON body, as files. Raises InvalidParameter."""
    return await take_pictures(body, REFERENCE_IMAGES, MAX_REFERENCES)


async def take_pictures(body: dict[str, Any], field: str, most: int) -> tuple[bytes, ...]:
    """Takes a list of at most `most` pictures in base64 out of a JSON body, as files. Raises InvalidParameter."""
    given = body.pop(field, None)
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise InvalidParameter(field, "must be a list of pictures in base64")
    if len(given) > most:
        raise InvalidParameter(field, f"must be at most {most} pictures")
    # In a thread: they may be megabytes.
    return await asyncio.to_thread(lambda: tuple(decode_picture(each, field) for each in given))

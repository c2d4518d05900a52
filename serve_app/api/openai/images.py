"""The endpoints that make images for OpenAI's clients: generations take JSON, edits a form."""

from typing import Final

from fastapi import APIRouter, Request, Response

from deployments.engine.protocol.inputs import Uploads
from serve_app.api.dependencies import ServiceDep
from serve_app.api.openai import schemas
from serve_app.api.openai.answers import Act, ImagesAnswer, ImagesEventEncoder, images_answer
from serve_app.api.openai.edits import FILES, OPTIONS, read_edit_fields, read_pictures
from serve_app.api.openai.errors import OpenAIRoute, openai_errors
from serve_app.api.openai.fields import ImagesRequest, fit_size, read_images_request
from serve_app.api.openai.model_names import ModelNamesDep
from serve_app.api.parsing.body import read_json_object
from serve_app.api.parsing.forms import read_form
from serve_app.api.responses.delivery import collect, headers_of, options_of, permit, prepare_and_charge
from serve_app.api.responses.delivery import files_of as uploaded_files_of
from serve_app.api.responses.event_stream import open_stream
from serve_app.api.responses.idempotency import refuse_key, run_once
from serve_app.api.responses.large_json import json_response
from serve_app.api.responses.openapi import extra_of
from serve_app.api.routes.results import files_of, keep_images
from serve_app.generation.prepare import served_model
from serve_app.generation.result import Result
from serve_app.service import DiffusionService

router = APIRouter(prefix="/v1/images", tags=["openai"], route_class=OpenAIRoute)

_GENERATION: Final[Act] = "image_generation"
_EDIT: Final[Act] = "image_edit"


@router.post(
    "/generations",
    response_model=ImagesAnswer,
    openapi_extra=extra_of(schemas.generation_body()),
    responses=schemas.answers(),
)
async def generate_images(request: Request, service: ServiceDep, models: ModelNamesDep) -> Response:
    """Makes images from a prompt, as OpenAI's endpoint of this name does. With `stream` they come as events."""
    body = await read_json_object(request, request.app.state.max_body_bytes)
    asked = read_images_request(body, models, edits=False, keeps_images=files_of(request) is not None)
    return await _answer(request, service, asked, None, _GENERATION)


@router.post(
    "/edits",
    response_model=ImagesAnswer,
    openapi_extra=extra_of(schemas.edit_body()),
    responses=schemas.answers(),
)
async def edit_images(request: Request, service: ServiceDep, models: ModelNamesDep) -> Response:
    """Changes an image towards the prompt, or repaints it where its mask is transparent. Answers as generations do.

    With `controls`, the next images are those that its ControlNets follow. Further ones are reference images, which
    models with an IP-Adapter take after.
    """
    form = await read_form(request, request.app.state.max_upload_bytes, FILES, OPTIONS)
    keeps_images = files_of(request) is not None
    asked = read_images_request(read_edit_fields(form), models, edits=True, keeps_images=keeps_images)
    return await _answer(request, service, asked, read_pictures(form, asked), _EDIT)


async def _answer(
    request: Request, service: DiffusionService, asked: ImagesRequest, uploads: Uploads | None, act: Act
) -> Response:
    asked = fit_size(asked, served_model(service.models, asked.params, uploads))
    params = permit(request, asked.params)
    files = files_of(request)
    if asked.fields.response_format == "url" and files is not None:
        await files.check_room(params.num_images)
    if asked.fields.stream:
        refuse_key(request)
        prepared = await prepare_and_charge(request, service, params, uploads, asked.fields.partial_images)
        return await open_stream(request, service.run(prepared), ImagesEventEncoder(asked, prepared, act))

    async def work() -> Response:
        # Here, too, because refusals are kept for their Idempotency-Key as they are raised.
        with openai_errors():
            result = await collect(request, service, await prepare_and_charge(request, service, params, uploads))
            urls = await _keep_images(request, asked, result)
        return await json_response(lambda: images_answer(asked, result, urls), headers=headers_of(result))

    if asked.fields.response_format == "url":
        # Its addresses end long before a kept answer would; the images themselves come from the cache.
        return await work()
    understood = {"fields": asked.fields.model_dump(), "params": params.model_dump(mode="json"), **options_of(uploads)}
    return await run_once(request, understood, uploaded_files_of(uploads), work)


async def _keep_images(request: Request, asked: ImagesRequest, result: Result) -> list[str] | None:
    """Returns the images' addresses; None where the answer has the images themselves."""
    files = files_of(request)
    if asked.fields.response_format != "url" or files is None:
        return None
    return await keep_images(request, files, result.images)

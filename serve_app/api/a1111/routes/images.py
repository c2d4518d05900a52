"""A1111's endpoints that make images."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from fastapi import APIRouter, Request, Response

from deployments.engine.protocol.errors import Cancelled
from deployments.engine.protocol.events import Event, ImageDone, Timings
from serve_app.api.a1111.answers import answer_of
from serve_app.api.a1111.callers import Callers, CallersDep, caller_of
from serve_app.api.a1111.errors import A1111Route, a1111_errors
from serve_app.api.a1111.fields import GenerationFields, ImageToImageFields, TextToImageFields, validate_fields
from serve_app.api.a1111.models import choose_model
from serve_app.api.a1111.options import Options
from serve_app.api.a1111.parameters import TranslatedRequest, translate_request
from serve_app.api.a1111.running_jobs import RunningJob
from serve_app.api.a1111.schemas import Generated, answers, body_of
from serve_app.api.dependencies import ServiceDep
from serve_app.api.parsing.body import read_json_object
from serve_app.api.responses.delivery import collect, files_of, headers_of, options_of, permit, prepare_and_charge
from serve_app.api.responses.idempotency import run_once
from serve_app.api.responses.large_json import json_response
from serve_app.api.responses.openapi import extra_of
from serve_app.generation.prepare import adapters_of, controlnets_of, served_model
from serve_app.generation.prepared import Prepared
from serve_app.generation.result import Result, result_of
from serve_app.service import DiffusionService
from serve_app.tasks import cancel_and_wait

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"], route_class=A1111Route)

PREVIEWS: Final = 3
"""The previews of each image, for calls that ask how far it is."""

Fields = TypeVar("Fields", bound=GenerationFields)


@router.post(
    "/txt2img",
    response_model=Generated,
    openapi_extra=extra_of(body_of(TextToImageFields)),
    responses=answers(),
)
async def text_to_image(request: Request, service: ServiceDep, callers: CallersDep) -> Response:
    """Makes images from a prompt, as A1111's endpoint of this name does."""
    return await _generate(request, service, callers, await _read_fields(request, TextToImageFields))


@router.post(
    "/img2img",
    response_model=Generated,
    openapi_extra=extra_of(body_of(ImageToImageFields)),
    responses=answers(),
)
async def image_to_image(request: Request, service: ServiceDep, callers: CallersDep) -> Response:
    """Changes an image towards the prompt, or repaints it where its mask is white.

    With `inpaint_full_res`, the default, only the masked part is made, and pasted back into the whole image.
    """
    return await _generate(request, service, callers, await _read_fields(request, ImageToImageFields))


async def _read_fields(request: Request, kind: type[Fields]) -> Fields:
    """Reads the body's fields. Raises Problem."""
    body = await read_json_object(request, request.app.state.max_upload_bytes)
    # Long texts are looked at, and hold up nobody.
    return await asyncio.to_thread(validate_fields, kind, body)


async def _generate(
    request: Request, service: DiffusionService, callers: Callers, fields: GenerationFields
) -> Response:
    caller = caller_of(request)
    options = await callers.options.read(caller)
    asked = await asyncio.to_thread(_translate, fields, options, service)
    params = permit(request, asked.params)
    # Each takes the device a while, and most callers never look.
    previews = PREVIEWS if options.live_previews_enable and await callers.jobs.is_watched(caller) else 0

    async def work() -> Response:
        with a1111_errors():
            prepared = await prepare_and_charge(request, service, params, asked.uploads, previews)
            result = await _collect(request, service, callers, prepared)
        await _keep_overrides(callers, caller, options, fields)
        headers = {} if result is None else headers_of(result)
        return await json_response(lambda: answer_of(fields, prepared, result), headers=headers)

    understood = {"fields": fields.echo(), "params": params.model_dump(mode="json"), **options_of(asked.uploads)}
    return await run_once(request, understood, files_of(asked.uploads), work)


def _translate(fields: GenerationFields, options: Options, service: DiffusionService) -> TranslatedRequest:
    inpaints = isinstance(fields, ImageToImageFields) and bool(fields.mask)
    named, kept = fields.override_settings.sd_model_checkpoint, options.sd_model_checkpoint
    spec = choose_model(service.models, named, kept, inpaints=inpaints)
    controlnets, adapters = controlnets_of(service.models, spec), adapters_of(service.models, spec)
    asked = translate_request(fields, options, spec, controlnets, adapters, service.upscalers)
    served = served_model(service.models, asked.params, asked.uploads)
    if served is spec:
        return asked
    # Another one of the same weights has what the first lacks: sizes and defaults are those of the one that serves.
    return translate_request(fields, options, served, controlnets, adapters, service.upscalers)


async def _collect(request: Request, service: DiffusionService, callers: Callers, prepared: Prepared) -> Result | None:
    """Returns the images; of a request that was interrupted those that were done, and None if there were none."""
    job = RunningJob(prepared.request.name, prepared.request.params.num_images)
    images: list[ImageDone] = []

    def follow(event: Event) -> None:
        job.follow(event)
        if isinstance(event, ImageDone):
            images.append(event)

    async with _known_to_caller(callers, caller_of(request), job):
        try:
            return await collect(request, service, prepared, follow)
        except Cancelled:
            return result_of(prepared, images, (), Timings()) if images else None


@contextlib.asynccontextmanager
async def _known_to_caller(callers: Callers, caller: str, job: RunningJob) -> AsyncIterator[None]:
    """Lets the caller's other calls know of a job, and how far it is, for as long as this lasts."""
    await callers.jobs.tell(caller, job)
    telling = asyncio.create_task(callers.jobs.keep_telling(caller, job))
    try:
        yield
    finally:
        await cancel_and_wait(telling)
        await callers.jobs.end(caller, job)


async def _keep_overrides(callers: Callers, caller: str, options: Options, fields: GenerationFields) -> None:
    """Makes the request's own settings the caller's options, where it says that they stay."""
    if not fields.override_settings_restore_afterwards:
        given = fields.override_settings.model_dump(by_alias=True, exclude_defaults=True)
        if given:
            await callers.options.write(caller, options.with_changes(given))

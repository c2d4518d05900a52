"""Answers a request that has been read, in the form that its Accept header asks for."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response

from deployments.engine.protocol.events import Event
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from serve_app.api.exchange import exchange_of
from serve_app.api.middleware.rate_limiting import charge
from serve_app.api.parsing.negotiation import EVENTS, JSON, negotiate
from serve_app.api.principal import principal_of
from serve_app.api.responses.cache_headers import apply_cache_control, cache_header, read_cache_control
from serve_app.api.responses.disconnect import run_until_disconnect
from serve_app.api.responses.event_stream import open_stream
from serve_app.api.responses.idempotency import refuse_key, run_once
from serve_app.api.responses.large_json import json_response
from serve_app.api.responses.schemas import answer_of, server_timing
from serve_app.api.responses.stream_events import StreamEncoder
from serve_app.generation.prepared import Prepared
from serve_app.generation.result import Result
from serve_app.service import DiffusionService

FORMATS = ("png", "webp", "jpeg")


async def deliver(
    request: Request,
    service: DiffusionService,
    params: GenerationParams,
    *,
    uploads: Uploads | None = None,
    previews: int = 0,
) -> Response:
    """Answers with the images of `params`: as JSON, as one image's bytes, or as a stream. A disconnect frees its place.

    Raises Problem 403 for a priority above the caller's, and whatever `charge` and `run_once` raise.
    """
    media_type = negotiate(request, _offers_of(params))
    params = permit(request, params)
    if media_type == EVENTS:
        refuse_key(request)
        prepared = await prepare_and_charge(request, service, params, uploads, previews)
        return await open_stream(
            request, service.run(prepared), StreamEncoder(prepared, exchange_of(request.scope).request_id)
        )
    parameters = {"as": media_type, "params": params.model_dump(mode="json"), **options_of(uploads)}
    return await run_once(
        request, parameters, files_of(uploads), lambda: _answer_whole(request, service, params, uploads, media_type)
    )


async def deliver_image(
    request: Request,
    service: DiffusionService,
    params: GenerationParams,
    *,
    uploads: Uploads | None = None,
    errors: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Response:
    """Answers with the one image of `params`, in the format that the Accept header prefers.

    A disconnect frees its place. Raises as `deliver` does; `errors` translates what is kept for an Idempotency-Key.
    """
    offers = [f"image/{name}" for name in sorted(FORMATS, key=lambda name: name != params.output_format)]
    media_type = negotiate(request, offers)
    params = permit(request, params)
    parameters = {"as": media_type, "params": params.model_dump(mode="json"), **options_of(uploads)}

    async def work() -> Response:
        with errors():
            return await _answer_whole(request, service, params, uploads, media_type)

    return await run_once(request, parameters, files_of(uploads), work)


async def _answer_whole(
    request: Request, service: DiffusionService, params: GenerationParams, uploads: Uploads | None, media_type: str
) -> Response:
    """Answers all at once, not as a stream."""
    if media_type != JSON:
        params = params.model_copy(update={"output_format": media_type.removeprefix("image/")})
    prepared = await prepare_and_charge(request, service, params, uploads)
    result = await collect(request, service, prepared)
    if media_type == JSON:
        return await json_response(lambda: answer_of(result), headers=headers_of(result))
    return _image_response(result, media_type)


def permit(request: Request, params: GenerationParams) -> GenerationParams:
    """Returns `params` as the caller may have them, with its Cache-Control applied. Raises Problem 403."""
    return apply_cache_control(principal_of(request).permitted(params), read_cache_control(request))


async def collect(
    request: Request,
    service: DiffusionService,
    prepared: Prepared,
    on_event: Callable[[Event], None] | None = None,
) -> Result:
    """Returns all images of a prepared request, and notes its times for the log. A disconnect cancels it.

    `on_event` gets every event.
    """
    result = await run_until_disconnect(request.receive, service.collect(prepared, on_event))
    exchange_of(request.scope).timings = result.timings
    return result


async def prepare_and_charge(
    request: Request, service: DiffusionService, params: GenerationParams, uploads: Uploads | None, previews: int = 0
) -> Prepared:
    """Prepares the request, notes it for the log, and charges its caller."""
    prepared = await service.prepare(
        params,
        uploads=uploads,
        previews=previews,
        request_id=exchange_of(request.scope).request_id,
        tenant=principal_of(request).tenant,
    )
    entry = exchange_of(request.scope)
    entry.model, entry.prompt = prepared.request.model, prepared.asked.prompt
    await charge(request, prepared)
    return prepared


def options_of(uploads: Uploads | None) -> dict[str, Any]:
    """All of `uploads` except the files."""
    if uploads is None:
        return {}
    return {
        "mask_type": uploads.mask_type,
        "mask_alpha": uploads.mask_alpha,
        "preprocess": uploads.preprocess,
        "fit": uploads.fit,
    }


def files_of(uploads: Uploads | None) -> tuple[bytes | None, ...]:
    """The files of `uploads`, in an order of their own."""
    return () if uploads is None else (uploads.image, uploads.mask, *uploads.hints, *uploads.references)


def _offers_of(params: GenerationParams) -> list[str]:
    """The media types that can answer the request, the preferred one first; image bytes only for a single image."""
    formats = sorted(FORMATS, key=lambda name: name != params.output_format) if params.num_images == 1 else []
    return [JSON, EVENTS, *(f"image/{name}" for name in formats)]


def _image_response(result: Result, media_type: str) -> Response:
    image = result.images[0]
    headers = {
        **headers_of(result),
        "X-Seed": str(image.seed),
        "X-Model": quote(result.model, safe="/:@"),
        "Content-Disposition": f'inline; filename="{result.id}.{image.format}"',
    }
    if image.continued is not None:
        headers["X-Continued"] = f"steps={image.continued.steps}; distance={image.continued.distance:.6f}"
    return Response(image.data, media_type=media_type, headers=headers)


def headers_of(result: Result) -> dict[str, str]:
    """The headers of every answer that holds a result."""
    return {"Server-Timing": server_timing(result.timings), "Vary": "Accept", **cache_header(result.source)}

"""A request that has been read, answered in the form that its Accept header asks for."""

from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from deployments.engine.inputs import Uploads
from deployments.engine.params import GenerationParams
from serve_app.api.answers import answer_of, server_timing
from serve_app.api.caller import caller_of
from serve_app.api.departure import while_client_stays
from serve_app.api.negotiate import EVENTS, JSON, wanted
from serve_app.api.sse import open_stream
from serve_app.api.story import Story
from serve_app.result import Result
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
    """The images of `params` as JSON, as one image's bytes or as a stream. A client that leaves frees its place."""
    media_type, tenant = wanted(request, _offers(params)), caller_of(request).tenant
    if media_type == EVENTS:
        prepared = await service.prepare(params, uploads=uploads, previews=previews, tenant=tenant)
        return await open_stream(request, service.run(prepared), Story(prepared, request.state.request_id))
    if media_type != JSON:
        params = params.model_copy(update={"output_format": media_type.removeprefix("image/")})
    prepared = await service.prepare(params, uploads=uploads, tenant=tenant)
    result = await while_client_stays(request.receive, service.collect(prepared))
    if media_type == JSON:
        return JSONResponse(answer_of(result), headers=_headers(result))
    return _bytes(result, media_type)


def _offers(params: GenerationParams) -> list[str]:
    """What the request can be answered as, the best first; bytes only for a single image."""
    formats = sorted(FORMATS, key=lambda name: name != params.output_format) if params.num_images == 1 else []
    return [JSON, EVENTS, *(f"image/{name}" for name in formats)]


def _bytes(result: Result, media_type: str) -> Response:
    image = result.images[0]
    headers = {
        **_headers(result),
        "X-Seed": str(image.seed),
        "X-Model": quote(result.model, safe="/:@"),
        "Content-Disposition": f'inline; filename="{result.id}.{image.format}"',
    }
    return Response(image.data, media_type=media_type, headers=headers)


def _headers(result: Result) -> dict[str, str]:
    return {"Server-Timing": server_timing(result.timings), "Vary": "Accept"}

"""The native surface: `/ads/v2/diffusion`."""

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from deployments.engine.params import GenerationParams
from deployments.engine.sampler_names import SAMPLERS
from serve_app.api import examples
from serve_app.api.answers import Answer, answer_of, server_timing
from serve_app.api.body import read_json_object
from serve_app.api.departure import while_client_stays
from serve_app.api.negotiate import EVENTS, JSON, wanted
from serve_app.api.ops import Service, health_answer
from serve_app.api.sse import open_stream
from serve_app.api.story import Story
from serve_app.api.validation import read_params
from serve_app.result import Result
from serve_app.styles import STYLES

FORMATS = ("png", "webp", "jpeg")

router = APIRouter(prefix="/ads/v2/diffusion", tags=["diffusion"])

Previews = Annotated[int, Query(ge=0, le=8, description="Cheap looks at each image on the way; in a stream only.")]


@router.post(
    "/text-to-image",
    response_model=Answer,
    openapi_extra={"requestBody": examples.request_body()},
    responses={
        200: examples.success(),
        404: examples.failure("There is no such model."),
        422: examples.failure("A field breaks a rule; `errors` lists all of them."),
        503: examples.failure("The queue is full, or the engine is not there. Retry-After says when to come back."),
    },
)
async def text_to_image(request: Request, service: Service, previews: Previews = 0) -> Response:
    """Makes images from a prompt.

    The Accept header chooses the answer: `application/json`, one image's bytes (`image/png`, `image/webp`,
    `image/jpeg`), or `text/event-stream` with `progress`, `preview`, `image`, `failed`, and a last `done` or `error`.
    A client that leaves frees its place at once.
    """
    params = read_params(await read_json_object(request, request.app.state.max_body_bytes))
    media_type = wanted(request, _offers(params))
    if media_type == EVENTS:
        prepared = service.prepare(params, previews=previews)
        return await open_stream(request, service.run(prepared), Story(prepared, request.state.request_id))
    if media_type == JSON:
        result = await while_client_stays(request.receive, service.generate(params))
        return JSONResponse(answer_of(result), headers=_headers(result))
    params = params.model_copy(update={"output_format": media_type.removeprefix("image/")})
    result = await while_client_stays(request.receive, service.generate(params))
    return _bytes(result, media_type)


@router.get("/models")
async def models(service: Service) -> dict[str, Any]:
    """The models that can be asked for; the first is the default."""
    limits = GenerationParams.model_json_schema()["properties"]
    return {
        "models": [
            {
                "name": spec.name,
                "aliases": list(spec.aliases),
                "native_size": spec.native_size,
                "limits": {"max_pixels": spec.max_pixels, **_bounds(limits)},
                "default_sampler": spec.default_sampler,
                "licence": spec.licence,
            }
            for spec in service.models
        ]
    }


@router.get("/samplers")
async def samplers() -> dict[str, Any]:
    """The samplers. A scheduler's class name is understood too, and means its plain settings: the first row of it."""
    return {
        "samplers": [
            {
                "name": row.name,
                "label": row.label,
                "aliases": list(row.aliases),
                "scheduler": row.scheduler,
                "paper": row.paper,
            }
            for row in SAMPLERS.values()
        ]
    }


@router.get("/styles")
async def styles() -> dict[str, Any]:
    """The style presets, and what each adds to a prompt."""
    return {"styles": [{"name": style.name, "text": style.text} for style in STYLES.values()]}


@router.get("/stats")
async def stats(service: Service) -> dict[str, Any]:
    """Counters since the start, and latencies of the last minutes."""
    return await service.get_generation_stats()


@router.get("/health", responses={503: {"description": "No image can be made now; the body says why."}})
async def health(service: Service) -> JSONResponse:
    """Whether images can be made now: 200 if they can, else 503."""
    return health_answer(await service.health())


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


def _bounds(schema: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Smallest and largest values, from the parameters' own schema, so that they cannot disagree."""
    told = {"minimum": "min", "maximum": "max", "multipleOf": "multiple_of"}
    found = {}
    for name in ("width", "height", "num_images", "num_inference_steps"):
        part = next(part for part in schema[name].get("anyOf", [schema[name]]) if "maximum" in part)
        found[name] = {ours: part[theirs] for theirs, ours in told.items() if theirs in part}
    return found

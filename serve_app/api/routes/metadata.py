"""What can be asked of the server besides images, under `/ads/v2/diffusion`."""

from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.sampler_names import CHECKPOINT, SAMPLERS
from serve_app.api.dependencies import ServiceDep
from serve_app.api.routes.operations import health_answer
from serve_app.generation.styles import STYLES

router = APIRouter(prefix="/ads/v2/diffusion", tags=["diffusion"])


@router.get("/models")
async def models(service: ServiceDep) -> dict[str, Any]:
    """The models that can be asked for; the first is the default."""
    return {
        "models": [
            {
                "name": spec.name,
                "aliases": list(spec.aliases),
                "native_size": spec.native_size,
                "limits": {"max_pixels": spec.max_pixels, **_BOUNDS},
                "default_sampler": spec.default_sampler,
                "controlnets": list(spec.controlnets),
                "licence": spec.licence,
            }
            for spec in service.models
        ]
    }


@router.get("/samplers")
async def samplers() -> dict[str, Any]:
    """The samplers. A scheduler's class name is understood too, and means its plain settings: the first row of it.

    `checkpoint` is another one with each model: the scheduler and the settings that its own files name.
    """
    own: dict[str, Any] = {
        "name": CHECKPOINT,
        "label": CHECKPOINT.capitalize(),
        "aliases": [],
        "scheduler": None,
        "paper": None,
    }
    return {
        "samplers": [
            own,
            *(
                {
                    "name": row.name,
                    "label": row.label,
                    "aliases": list(row.aliases),
                    "scheduler": row.scheduler,
                    "paper": row.paper,
                }
                for row in SAMPLERS.values()
            ),
        ]
    }


@router.get("/styles")
async def styles() -> dict[str, Any]:
    """The style presets, and what each adds to a prompt."""
    return {"styles": [{"name": style.name, "text": style.text} for style in STYLES.values()]}


@router.get("/stats")
async def stats(service: ServiceDep) -> dict[str, Any]:
    """Counters since the start, and latencies of the last minutes."""
    return await service.get_generation_stats()


@router.get("/health", responses={503: {"description": "No image can be made now; the body says why."}})
async def health(service: ServiceDep) -> JSONResponse:
    """Whether images can be made now: 200 if they can, else 503."""
    return health_answer(await service.health())


def _bounds_of(schema: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Smallest and largest values, from the parameters' own schema, so that they cannot disagree."""
    told = {"minimum": "min", "maximum": "max", "multipleOf": "multiple_of"}
    found = {}
    for name in ("width", "height", "num_images", "num_inference_steps"):
        part = next(part for part in schema[name].get("anyOf", [schema[name]]) if "maximum" in part)
        found[name] = {ours: part[theirs] for theirs, ours in told.items() if theirs in part}
    return found


# A schema takes milliseconds to make.
_BOUNDS: Final = _bounds_of(GenerationParams.model_json_schema()["properties"])

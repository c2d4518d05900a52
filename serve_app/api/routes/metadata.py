"""The endpoints that describe the server, under `/ads/v2/diffusion`: models, samplers, styles, statistics, health."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.sampler_names import CHECKPOINT, SAMPLERS
from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.catalogue import LoraEntry
from deployments.loras.file_facts import FileFacts
from serve_app.api.dependencies import ServiceDep
from serve_app.api.routes.operations import health_answer
from serve_app.generation.ad_formats import AD_FORMATS
from serve_app.generation.styles import STYLES

router = APIRouter(prefix="/ads/v2/diffusion", tags=["diffusion"])


@router.get("/models")
async def models(service: ServiceDep) -> dict[str, Any]:
    """Lists the models; the first is the default."""
    return {
        "models": [
            {
                "name": spec.name,
                "aliases": list(spec.aliases),
                "native_size": spec.native_size,
                "limits": {"max_pixels": spec.max_pixels, **_BOUNDS},
                "default_sampler": spec.default_sampler,
                "default_steps": spec.default_steps or _DEFAULTS["num_inference_steps"],
                "default_guidance_scale": (
                    _DEFAULTS["guidance_scale"] if spec.default_guidance_scale is None else spec.default_guidance_scale
                ),
                "controlnets": list(spec.controlnets),
                "ip_adapters": list(spec.ip_adapters),
                "licence": spec.licence,
                "safety": spec.safety.policy,
            }
            for spec in service.models
        ]
    }


@router.get("/samplers")
async def samplers() -> dict[str, Any]:
    """Lists the samplers. A scheduler's class name is accepted too, and means the first sampler listed with it.

    `checkpoint` differs from model to model: it is the scheduler, with the settings, that the model's own files name.
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
    """Lists the style presets, and the text that each adds to a prompt."""
    return {"styles": [{"name": style.name, "text": style.text} for style in STYLES.values()]}


@router.get("/templates")
async def templates(service: ServiceDep) -> dict[str, Any]:
    """Lists the prompt templates, and the values that each needs."""
    rows = service.prompts.templates.values()
    return {"templates": [{**asdict(row), "template_values": list(row.places)} for row in rows]}


@router.get("/loras")
async def loras(service: ServiceDep) -> dict[str, Any]:
    """Lists the LoRAs that requests may name, with the models that each is known or supposed to fit.

    A file that cannot be used is listed with its `problem`.
    """
    # Reads the headers of files that are new.
    entries = await asyncio.to_thread(service.loras.entries)
    return {"loras": [_describe_lora(entry, service.models) for entry in entries]}


@router.get("/embeddings")
async def embeddings(service: ServiceDep) -> dict[str, Any]:
    """Lists the learnt embeddings that prompts may name, by their tokens, and files that cannot be used."""
    registry = service.prompts.embeddings
    # Called in a thread: new files are read then.
    files, skipped = await asyncio.to_thread(lambda: (registry.files, registry.skipped))
    return {
        "embeddings": [
            {
                "name": file.name,
                "token": file.token,
                "vectors": file.vectors,
                "width": file.width,
                "second_width": file.second_width,
                "digest": file.digest,
            }
            for file in files
        ],
        "skipped": [{"name": name, "reason": reason} for name, reason in skipped.items()],
    }


@router.get("/ad-formats")
async def ad_formats() -> dict[str, Any]:
    """Lists the sizes of advertisements that `ad_format` takes, in pixels."""
    return {"ad_formats": [asdict(row) for row in AD_FORMATS.values()]}


@router.get("/stats")
async def stats(service: ServiceDep) -> dict[str, Any]:
    """Returns counters since the start, and latencies of the last minutes."""
    return await service.get_generation_stats()


@router.get("/health", responses={503: {"description": "No image can be made now; the body says why."}})
async def health(service: ServiceDep) -> JSONResponse:
    """Returns 200 if images can be made now, else 503."""
    return health_answer(await service.health())


def _describe_lora(entry: LoraEntry, models: Sequence[ModelSpec]) -> dict[str, Any]:
    facts = entry.facts or FileFacts()
    fitting = [] if entry.problem else [spec.name for spec in models if entry.misfit(spec) is None]
    return {
        "name": entry.spec.name,
        "models": fitting,
        "networks": list(facts.networks),
        "size_bytes": facts.size or None,
        "problem": entry.problem,
    }


def _bounds_of(schema: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Reads smallest and largest values from the parameters' own schema, so that they cannot disagree."""
    names = {"minimum": "min", "maximum": "max", "multipleOf": "multiple_of"}
    found = {}
    for name in ("width", "height", "num_images", "num_inference_steps"):
        part = next(part for part in schema[name].get("anyOf", [schema[name]]) if "maximum" in part)
        found[name] = {ours: part[theirs] for theirs, ours in names.items() if theirs in part}
    return found


_DEFAULTS: Final = {
    name: GenerationParams.model_fields[name].default for name in ("num_inference_steps", "guidance_scale")
}
# Computed once: a schema takes milliseconds.
_BOUNDS: Final = _bounds_of(GenerationParams.model_json_schema()["properties"])

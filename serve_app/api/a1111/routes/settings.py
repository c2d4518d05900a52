"""A1111's endpoints for the caller's own options, and for the lists that its clients fill their menus with."""

import asyncio
import os
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import ValidationError

from deployments.engine.protocol.settings import MAX_CONTROLS
from serve_app.api.a1111.callers import CallersDep, caller_of
from serve_app.api.a1111.errors import A1111Route
from serve_app.api.a1111.fields import HR_UPSCALERS, LATENT
from serve_app.api.a1111.models import choose_model, describe_model
from serve_app.api.a1111.options import Options
from serve_app.api.a1111.routes.controlnet import adapter_names, controlnet_types
from serve_app.api.a1111.routes.extras import INTERPOLATION
from serve_app.api.a1111.sampler_names import list_samplers, list_schedulers
from serve_app.api.a1111.schemas import body_of, option_answers
from serve_app.api.a1111.units import list_modules
from serve_app.api.dependencies import ServiceDep
from serve_app.api.parsing.body import read_json_object
from serve_app.api.parsing.validation import problem_of_errors
from serve_app.generation.styles import STYLES
from serve_app.service import DiffusionService

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"], route_class=A1111Route)
page_router = APIRouter(tags=["a1111"], route_class=A1111Route)

# Clients look for the second to see whether there are ControlNets.
_SCRIPTS: Final = ["controlnet", "controlnet m2m"]


@router.get("/options")
async def read_options(request: Request, service: ServiceDep, callers: CallersDep) -> dict[str, Any]:
    """Returns the caller's options; the model by its name, also where none was chosen."""
    options = await callers.options.read(caller_of(request))
    return _describe_options(options, service)


@router.post("/options", openapi_extra={"requestBody": body_of(Options)}, responses=option_answers())
async def write_options(request: Request, service: ServiceDep, callers: CallersDep) -> dict[str, Any]:
    """Changes the caller's options: the model, `CLIP_stop_at_last_layers`, `samples_format`, `live_previews_enable`.

    Others are left alone. Nobody else's options change, and nothing is loaded.
    """
    body = await read_json_object(request, request.app.state.max_body_bytes)
    caller = caller_of(request)
    before = await callers.options.read(caller)
    try:
        options = before.with_changes({name: value for name, value in body.items() if value is not None})
    except ValidationError as error:
        raise problem_of_errors(error, known=tuple(Options.model_fields)) from None
    if options.sd_model_checkpoint != before.sd_model_checkpoint:
        # Raises UnknownModel.
        choose_model(service.models, options.sd_model_checkpoint, inpaints=False)
    await callers.options.write(caller, options)
    return {}


@router.get("/sd-models")
async def list_models(service: ServiceDep) -> list[dict[str, Any]]:
    """Lists the models."""
    return [describe_model(spec) for spec in service.models]


@router.get("/samplers")
async def samplers() -> list[dict[str, Any]]:
    """Lists the samplers by A1111's names."""
    return list_samplers()


@router.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """Lists the spacings of noise levels, which A1111 calls schedulers."""
    return list_schedulers()


@router.get("/upscalers")
async def upscalers(service: ServiceDep) -> list[dict[str, Any]]:
    """Lists what enlarges finished pictures."""
    every = (*INTERPOLATION, *service.upscalers)
    return [{"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for name in every]


@router.get("/latent-upscale-modes")
async def latent_upscale_modes() -> list[dict[str, Any]]:
    """Lists what enlarges latents between two passes."""
    return [{"name": LATENT}]


@router.get("/prompt-styles")
async def prompt_styles() -> list[dict[str, Any]]:
    """Lists the style presets."""
    return [{"name": style.name, "prompt": style.text, "negative_prompt": ""} for style in STYLES.values()]


@router.get("/scripts")
async def scripts(service: ServiceDep) -> dict[str, list[str]]:
    """Lists the scripts: ControlNet's, where any model has one."""
    found = _SCRIPTS if controlnet_types(service) or adapter_names(service) else []
    return {"txt2img": found, "img2img": found}


@router.get("/embeddings")
async def embeddings(service: ServiceDep) -> dict[str, dict[str, Any]]:
    """Lists the textual inversions by what prompts call them, and the files that cannot be used."""
    registry = service.prompts.embeddings
    # New files are read then.
    files, skipped = await asyncio.to_thread(lambda: (registry.files, registry.skipped))
    # Not told by their files: how long they were trained, and on what.
    unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    return {
        "loaded": {file.token: {**unknown, "shape": file.width, "vectors": file.vectors} for file in files},
        "skipped": {name: {**unknown, "shape": 0, "vectors": 0} for name in skipped},
    }


@router.get("/loras")
async def loras(service: ServiceDep) -> list[dict[str, Any]]:
    """Lists the LoRAs that `<lora:NAME:WEIGHT>` can name in a prompt. Paths are nobody's business."""
    entries = await asyncio.to_thread(service.loras.entries)
    names = [entry.spec.name for entry in entries if entry.problem is None]
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in names]


@router.get("/memory")
async def memory(service: ServiceDep) -> dict[str, dict[str, Any]]:
    """Says how much memory the engines' devices have, in bytes, as far as they tell."""
    stats = await service.get_generation_stats()
    budgets = [engine["memory"] for engine in stats["engines"]]
    total = sum(each["budget_bytes"] or 0 for each in budgets)
    used = sum(each["held_bytes"] for each in budgets)
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    system = {"free": max(total - used, 0), "used": used, "total": total}
    return {"ram": {"free": free, "used": ram - free, "total": ram}, "cuda": {"system": system}}


@router.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    """Returns the flags that such a server would have been started with."""
    return {"api": True, "api_log": False, "listen": True, "nowebui": True}


def _add_empty_lists() -> None:
    """Adds the lists of what this server has none of: clients ask for them, and need an array."""
    for path in ("sd-vae", "sd-modules", "hypernetworks", "face-restorers", "realesrgan-models"):
        router.add_api_route(f"/{path}", _empty_list, methods=["GET"], name=f"list {path}", operation_id=path)


async def _empty_list() -> list[dict[str, Any]]:
    """Lists what this server has none of."""
    return []


_add_empty_lists()


@router.post("/refresh-checkpoints")
async def refresh_checkpoints() -> dict[str, Any]:
    """Does nothing: models are those of the configuration."""
    return {}


@page_router.get("/config")
async def read_page(service: ServiceDep) -> dict[str, Any]:
    """Describes those parts of A1111's page in which its Photoshop plug-ins look for menus."""
    networks, modules = list(service.upscalers), list_modules(controlnet_types(service), adapter_names(service))
    parts: dict[str, dict[str, Any]] = {
        "txt2img_hr_upscaler": {"label": "Upscaler", "choices": [*HR_UPSCALERS, *networks]},
        "extras_upscaler_1": {"label": "Upscaler 1", "choices": [*INTERPOLATION, *networks]},
        "setting_control_net_max_models_num": {"label": "Multi-ControlNet", "value": MAX_CONTROLS},
        "txt2img_controlnet_preprocessor": {"label": "Preprocessor", "choices": modules},
    }
    components = [{"props": {"elem_id": name, **props}} for name, props in parts.items()]
    return {"version": "3.41.2", "mode": "blocks", "components": components, "dependencies": []}


def _describe_options(options: Options, service: DiffusionService) -> dict[str, Any]:
    model = choose_model(service.models, "", options.sd_model_checkpoint, inpaints=False)
    named = {"sd_model_checkpoint": model.name, "sd_checkpoint_hash": ""}
    return options.model_dump(mode="json", by_alias=True) | named

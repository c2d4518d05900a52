"""The endpoints of A1111's ControlNet extension, which its clients look for at the server's root."""

import asyncio
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import Field

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.settings import MAX_CONTROLS, ControlSettings
from deployments.engine.protocol.spec import ModelSpec
from serve_app.api.a1111.errors import A1111Route
from serve_app.api.a1111.fields import LenientFields, validate_fields
from serve_app.api.a1111.ip_adapters import MODULES
from serve_app.api.a1111.schemas import body_of, extra_answers
from serve_app.api.a1111.units import list_modules, type_of
from serve_app.api.dependencies import ServiceDep
from serve_app.api.middleware.rate_limiting import charge_pixels
from serve_app.api.parsing.base64_pictures import decode_picture, encode_picture
from serve_app.api.parsing.body import read_json_object
from serve_app.api.principal import principal_of
from serve_app.api.responses.disconnect import run_until_disconnect
from serve_app.api.responses.large_json import json_response
from serve_app.service import DiffusionService

router = APIRouter(prefix="/controlnet", tags=["a1111"], route_class=A1111Route)

# That of the extension's API whose units are understood here.
_VERSION: Final = 3


class DetectFields(LenientFields):
    """Photos, in base64, and what makes hints of them; the annotators' own settings stand."""

    module: str = Field(alias="controlnet_module", max_length=200)
    images: tuple[str, ...] = Field(alias="controlnet_images", min_length=1, max_length=8)


@router.get("/version")
async def version() -> dict[str, int]:
    """Returns the version of the extension's API."""
    return {"version": _VERSION}


@router.get("/model_list")
async def list_models(service: ServiceDep) -> dict[str, list[str]]:
    """Lists the ControlNets of all models by their types, and their IP-Adapters, which units name as their `model`."""
    return {"model_list": [*controlnet_types(service), *adapter_names(service)]}


@router.get("/module_list")
async def list_annotators(service: ServiceDep) -> dict[str, list[str]]:
    """Lists what makes hints from photos, which units name as their `module`; `none` is for finished hints.

    The module of IP-Adapters has their pictures looked at, and makes none.
    """
    return {"module_list": list_modules(controlnet_types(service), adapter_names(service))}


@router.get("/control_types")
async def list_types(service: ServiceDep) -> dict[str, dict[str, Any]]:
    """Lists the ControlNets by type, each with its module and its model; the IP-Adapters are one type."""
    types, adapters = controlnet_types(service), adapter_names(service)
    described = {"All": _describe_type(list_modules(types, adapters), ["None", *types, *adapters])}
    described |= {kind.capitalize(): _describe_type(["none", kind], ["None", kind]) for kind in types}
    if adapters:
        described["IP-Adapter"] = _describe_type(["none", *MODULES], ["None", *adapters])
    return {"control_types": described}


@router.get("/settings")
async def settings() -> dict[str, int]:
    """Returns how many ControlNets a request may have."""
    return {"control_net_unit_count": MAX_CONTROLS}


@router.post("/detect", openapi_extra={"requestBody": body_of(DetectFields)}, responses=extra_answers())
async def detect(request: Request, service: ServiceDep) -> Response:
    """Makes hints from photos, each in its photo's shape at the native area of a model that has such a ControlNet.

    A disconnect ends it.
    """
    body = await read_json_object(request, request.app.state.max_upload_bytes)
    fields = validate_fields(DetectFields, body)
    spec, kind = _find_type(service, fields.module)
    hints: list[bytes] = []
    for index, picture in enumerate(fields.images):
        photo = await asyncio.to_thread(decode_picture, picture, f"controlnet_images/{index}")
        uploads = Uploads(hints=(photo,), preprocess=True)
        params = GenerationParams(prompt="", model_name=spec.name, controls=(ControlSettings(type=kind),))
        prepared = await service.prepare(params, uploads=uploads, tenant=principal_of(request).tenant)
        await charge_pixels(request, spec.native_size * spec.native_size)
        hints += await run_until_disconnect(request.receive, service.make_hints(prepared))
    return await json_response(lambda: {"images": [encode_picture(hint) for hint in hints], "info": "Success"})


def _find_type(service: DiffusionService, module: str) -> tuple[ModelSpec, str]:
    for spec in service.models:
        if (kind := type_of(module, tuple(spec.controlnets))) is not None:
            return spec, kind
    known = ", ".join(controlnet_types(service))
    raise InvalidParameter("controlnet_module", f"must be of a ControlNet that a model has: {known}")


def controlnet_types(service: DiffusionService) -> list[str]:
    """Returns the types of all models' ControlNets."""
    return list(dict.fromkeys(kind for spec in service.models for kind in spec.controlnets))


def adapter_names(service: DiffusionService) -> list[str]:
    """Returns the names of all models' IP-Adapters."""
    return list(dict.fromkeys(name for spec in service.models for name in spec.ip_adapters))


def _describe_type(modules: list[str], models: list[str]) -> dict[str, Any]:
    return {
        "module_list": modules,
        "model_list": models,
        "default_option": modules[-1],
        "default_model": models[-1],
    }

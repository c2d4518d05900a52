"""The endpoints for operators and orchestrators: probes and metrics."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serve_app.api.dependencies import ServiceDep
from serve_app.api.parsing.negotiation import negotiate
from serve_app.api.responses.openapi import error_response
from serve_app.observability.health import Health
from serve_app.observability.prometheus import OPENMETRICS, TEXT, exposition

router = APIRouter(tags=["operations"])


_TEXTS = {kind: {"schema": {"type": "string"}} for kind in (TEXT, OPENMETRICS)}
_METRICS: Mapping[int | str, dict[str, Any]] = MappingProxyType(
    {200: {"content": _TEXTS}, 406: error_response("Neither Prometheus' text format nor OpenMetrics is acceptable.")}
)


@router.get("/livez")
async def livez() -> dict[str, str]:
    """Returns 200 while this process answers at all."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"description": "No image can be made now."}})
async def readyz(service: ServiceDep) -> JSONResponse:
    """Returns 200 if images can be made now, else 503."""
    return health_answer(await service.health())


@router.get("/metrics", response_class=Response, responses=dict(_METRICS))
async def metrics(request: Request, service: ServiceDep) -> Response:
    """Returns the metrics of this process and all engines, for Prometheus. The engines' figures are added up."""
    media_type = negotiate(request, [TEXT, OPENMETRICS])
    document, content_type = exposition(await service.all_samples(), media_type)
    return Response(document, headers={"Content-Type": content_type, "Vary": "Accept", "Cache-Control": "no-store"})


def health_answer(health: Health) -> JSONResponse:
    """The guide's health object; 200 only if images can be made."""
    body: dict[str, Any] = {
        "status": health.status,
        "service": "diffusion",
        "loaded_models": health.loaded_models,
        "device": health.device,
        "backend": health.backend,
        "cache_entries": health.cache_entries,
        "labels": dict(health.labels),
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    return JSONResponse(body, 200 if health.is_ready else 503, {"Cache-Control": "no-store"})

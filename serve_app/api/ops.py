"""What operators and orchestrators ask."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from serve_app.service import DiffusionService, Health

router = APIRouter(tags=["operations"])


def service_of(request: Request) -> DiffusionService:
    """The service that this application was made for."""
    service: DiffusionService = request.app.state.service
    return service


Service = Annotated[DiffusionService, Depends(service_of)]


@router.get("/livez")
async def livez() -> dict[str, str]:
    """200 while this process answers at all."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"description": "No image can be made now."}})
async def readyz(service: Service) -> JSONResponse:
    """200 when images can be made now, else 503."""
    return health_answer(await service.health())


def health_answer(health: Health) -> JSONResponse:
    """The guide's health object; 200 only when healthy."""
    body: dict[str, Any] = {
        "status": health.status,
        "service": "diffusion",
        "loaded_models": health.loaded_models,
        "device": health.device,
        "cache_entries": health.cache_entries,
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    return JSONResponse(body, 200 if health.status == "healthy" else 503, {"Cache-Control": "no-store"})

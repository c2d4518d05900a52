"""Ending a request by its id: `x-request-id` is the caller's to choose, and every answer and stream tells it."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from serve_app.api.dependencies import ServiceDep
from serve_app.api.principal import principal_of
from serve_app.api.responses.openapi import job_answers

router = APIRouter(prefix="/ads/v2/diffusion", tags=["diffusion"], responses=job_answers())


# As `x-request-id` may be, with the number of an entry behind it.
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]+(:[0-9]+)?$", max_length=140)]


@router.delete("/requests/{request_id}")
async def cancel(request: Request, request_id: Name, service: ServiceDep) -> dict[str, Any]:
    """Ends the caller's own request, or batch, of that id, through whichever process it came.

    Its caller is answered 499 `cancelled`; a stream ends with an `error` event that says so. Where nothing of that id
    is running, because it never was, or is done, or is cancelled already, `cancelled` is false: that is no error.
    """
    return {"id": request_id, "cancelled": await service.cancel(request_id, principal_of(request).tenant)}

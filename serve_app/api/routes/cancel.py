"""The endpoint that cancels a request by its id: the caller's `x-request-id`, which every answer and stream repeats."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from serve_app.api.dependencies import ServiceDep
from serve_app.api.principal import principal_of
from serve_app.api.responses.openapi import job_answers

router = APIRouter(prefix="/ads/v2/diffusion", tags=["diffusion"], responses=job_answers())


# An `x-request-id`, optionally followed by the number of an entry.
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]+(:[0-9]+)?$", max_length=140)]


@router.delete("/requests/{request_id}")
async def cancel(request: Request, request_id: Name, service: ServiceDep) -> dict[str, Any]:
    """Cancels the caller's own request or batch with that id, whichever process is serving it.

    Its caller is answered 499 `cancelled`; a stream ends with an `error` event of that code. `cancelled` is false if
    nothing with that id is running: it never was, is done, or is cancelled already. That is no error.
    """
    return {"id": request_id, "cancelled": await service.cancel(request_id, principal_of(request).tenant)}

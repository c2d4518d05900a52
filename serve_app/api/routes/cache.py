"""The endpoint that empties the result cache."""

from typing import Any, Final

from fastapi import APIRouter

from serve_app.api.dependencies import ServiceDep
from serve_app.api.problems import Problem
from serve_app.api.responses.openapi import error_response
from serve_app.store.redis import RedisGone

router = APIRouter(prefix="/ads/v2/diffusion", tags=["operations"])

# Redis's circuit breaker has opened, or soon will, and stays open for as long.
_RETRY_S: Final = 5


@router.delete(
    "/cache",
    responses={
        403: error_response("The caller may not operate this server."),
        503: error_response("Redis could not be reached; only this process has emptied its cache."),
    },
)
async def empty_cache(service: ServiceDep) -> dict[str, Any]:
    """Empties the result cache, for every tenant and in every process; `emptied` counts this process's results only."""
    try:
        return {"emptied": await service.empty_cache()}
    except RedisGone:
        message = "this process has forgotten its results, but Redis could not be told; try again"
        raise Problem(503, "cache_not_emptied", message, retry_after=_RETRY_S) from None

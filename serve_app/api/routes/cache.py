"""The result cache over HTTP: what a caller may say of it, what an answer says of it, and how it is emptied."""

from types import MappingProxyType
from typing import Any, Final

from fastapi import APIRouter, Request

from deployments.engine.protocol.events import Source
from deployments.engine.protocol.params import CacheUse, GenerationParams
from serve_app.api.problems import Problem
from serve_app.api.responses.openapi import failure
from serve_app.api.routes.operations import Service
from serve_app.store.redis import RedisGone

router = APIRouter(prefix="/ads/v2/diffusion", tags=["operations"])

HEADER: Final = "X-Cache"

_TOLD: Final = MappingProxyType({"made": "MISS", "cache": "HIT", "shared": "COALESCED"})

# Its breaker has opened, or soon will, and stays so for as long.
_RETRY_S: Final = 5


def as_controlled(params: GenerationParams, use: CacheUse | None) -> GenerationParams:
    """`params` with what the request's Cache-Control says, where it says something."""
    return params if use is None else params.model_copy(update={"cache": use})


def cache_control(request: Request) -> CacheUse | None:
    """What the request's Cache-Control says (RFC 9111): `no-store` is to stay away from the cache, `no-cache` is for a
    new result, which is kept."""
    said = ",".join(request.headers.getlist("cache-control"))
    directives = {directive.strip().lower() for directive in said.split(",")}
    if "no-store" in directives:
        return "off"
    return "refresh" if "no-cache" in directives else None


def told(source: Source) -> dict[str, str]:
    """The header that says where an answer's images come from."""
    return {HEADER: _TOLD[source]}


@router.delete(
    "/cache",
    responses={
        403: failure("The caller may not operate this server."),
        503: failure("Redis could not be told; this process has forgotten its results."),
    },
)
async def empty_cache(service: Service) -> dict[str, Any]:
    """Forgets all cached results, for every tenant and in every process; `emptied` is the number of this one's."""
    try:
        return {"emptied": await service.empty_cache()}
    except RedisGone:
        message = "this process has forgotten its results, but Redis could not be told; try again"
        raise Problem(503, "cache_not_emptied", message, retry_after=_RETRY_S) from None

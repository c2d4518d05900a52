"""The result cache in headers: Cache-Control in requests (RFC 9111), `X-Cache` in answers."""

from types import MappingProxyType
from typing import Final

from fastapi import Request

from deployments.engine.protocol.events import Source
from deployments.engine.protocol.params import CacheUse, GenerationParams

HEADER: Final = "X-Cache"

_HEADER_VALUES: Final = MappingProxyType({"made": "MISS", "cache": "HIT", "shared": "COALESCED"})


def apply_cache_control(params: GenerationParams, use: CacheUse | None) -> GenerationParams:
    """Returns `params` with the request's Cache-Control applied, if it has any."""
    return params if use is None else params.model_copy(update={"cache": use})


def read_cache_control(request: Request) -> CacheUse | None:
    """Reads the request's Cache-Control (RFC 9111): `no-store` bypasses the cache, `no-cache` renews the result."""
    value = ",".join(request.headers.getlist("cache-control"))
    directives = {directive.strip().lower() for directive in value.split(",")}
    if "no-store" in directives:
        return "off"
    return "refresh" if "no-cache" in directives else None


def cache_header(source: Source) -> dict[str, str]:
    """The header that says where an answer's images come from."""
    return {HEADER: _HEADER_VALUES[source]}

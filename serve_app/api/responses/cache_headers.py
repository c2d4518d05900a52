"""The result cache in headers: what a caller may say of it (RFC 9111), and what an answer says of it."""

from types import MappingProxyType
from typing import Final

from fastapi import Request

from deployments.engine.protocol.events import Source
from deployments.engine.protocol.params import CacheUse, GenerationParams

HEADER: Final = "X-Cache"

_HEADER_VALUES: Final = MappingProxyType({"made": "MISS", "cache": "HIT", "shared": "COALESCED"})


def apply_cache_control(params: GenerationParams, use: CacheUse | None) -> GenerationParams:
    """`params` with what the request's Cache-Control says, where it says something."""
    return params if use is None else params.model_copy(update={"cache": use})


def read_cache_control(request: Request) -> CacheUse | None:
    """What the request's Cache-Control says (RFC 9111): `no-store` is to stay away from the cache, `no-cache` is for a
    new result, which is kept."""
    said = ",".join(request.headers.getlist("cache-control"))
    directives = {directive.strip().lower() for directive in said.split(",")}
    if "no-store" in directives:
        return "off"
    return "refresh" if "no-cache" in directives else None


def cache_header(source: Source) -> dict[str, str]:
    """The header that says where an answer's images come from."""
    return {HEADER: _HEADER_VALUES[source]}

"""The settings of the result cache."""

from pydantic import Field

from serve_app.config.strict import Strict


class CacheConfig(Strict):
    """`memory_bytes` is of each ingress process; `ttl_s` seconds after it was made a result is forgotten."""

    enabled: bool = True
    memory_bytes: int = Field(default=2**28, ge=0)
    ttl_s: float = Field(default=86_400.0, gt=0, le=31_536_000)

"""The guide's health object: whether images can be made now, and on what."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["healthy", "degraded", "starting", "unhealthy"]


@dataclass(frozen=True, slots=True)
class Health:
    """`healthy` if images can be made now, `degraded` if they can although Redis is gone; `starting` until that was so
    for the first time. `labels` are what files are labelled with.
    """

    status: Status
    device: str
    loaded_models: int
    cache_entries: int = 0
    backend: str = ""
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        """Whether images can be made now."""
        return self.status in ("healthy", "degraded")

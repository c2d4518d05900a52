"""The guide's health object: whether images can be made now, and on what."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["healthy", "degraded", "starting", "unhealthy"]


@dataclass(frozen=True, slots=True)
class Health:
    """`healthy` if images can be made now, `degraded` if they can although Redis is gone; `starting` until that was so
    for the first time.
    """

    status: Status
    device: str
    loaded_models: int
    cache_entries: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether images can be made now."""
        return self.status in ("healthy", "degraded")

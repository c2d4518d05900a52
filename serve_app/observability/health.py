"""Whether images can be made now, and on what: the guide's health object."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["healthy", "degraded", "starting", "unhealthy"]


@dataclass(frozen=True, slots=True)
class Health:
    """`healthy` when images can be made now, `degraded` when they can though Redis is gone; `starting` until that was
    so for the first time.
    """

    status: Status
    device: str
    loaded_models: int
    cache_entries: int = 0

    @property
    def ready(self) -> bool:
        """Whether images can be made now."""
        return self.status in ("healthy", "degraded")

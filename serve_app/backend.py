"""The seam between the HTTP side and whatever makes the pictures: an engine in this process, or Ray Serve replicas."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from deployments.engine.events import Event
from deployments.engine.row import Request
from deployments.engine.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class BackendReport:
    """What a backend says of itself.

    `ready` is true while at least one warmed-up engine makes progress; `counters` are summed over all engines
    (`unet_calls`, `unet_rows`, `images`, `failures`, `waiting`, `running`, ...). `own` are the backend's, in this
    process: `replays`, `quarantined`, `quarantine_refusals` (see `replays.py`), where it has replicas to lose.
    """

    ready: bool
    device: str
    loaded_models: tuple[str, ...]
    counters: dict[str, float] = field(default_factory=dict)
    own: Mapping[str, int] = field(default_factory=dict)


class Backend(Protocol):
    """Makes pictures from complete requests."""

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The models that can be asked for; the first is the default. Native sizes are known."""

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """The request's events (see `deployments.engine.events`). Closing the generator early cancels the request."""

    async def report(self) -> BackendReport:
        """The state of the engines, now."""

    async def close(self) -> None:
        """Frees what the backend holds; running requests are cancelled."""

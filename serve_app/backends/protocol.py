"""The one shape of whatever makes images: an engine in this process, Ray Serve replicas, or a layer around either."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from deployments.engine.protocol.events import Event
from deployments.engine.protocol.inputs import Enlargement
from deployments.engine.protocol.report import EngineReport, TokenCount
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class BackendReport:
    """What the engines behind a backend say of themselves; those that do not answer in time are not among them."""

    engines: tuple[EngineReport, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether at least one warmed-up engine makes progress."""
        return any(engine.ready for engine in self.engines)

    @property
    def device(self) -> str:
        """The kinds of device, in the order in which they came."""
        return ", ".join(dict.fromkeys(engine.device for engine in self.engines if engine.device))

    @property
    def backend(self) -> str:
        """What runs the networks, torch or openvino, in the order in which they came."""
        return ", ".join(dict.fromkeys(name for engine in self.engines for name in engine.backends.values()))

    @property
    def loaded_models(self) -> tuple[str, ...]:
        """The models that at least one engine has in memory, in the order in which they came."""
        return tuple(dict.fromkeys(name for engine in self.engines for name in engine.loaded_models))


class Backend(Protocol):
    """Makes images from complete requests."""

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The models that can be asked for; the first is the default. Native sizes are known."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What this process has done about lost replicas: `replays`, `quarantined`, `quarantine_refusals`."""

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """The request's events (`engine.protocol.events`). Closing the generator early cancels the request."""

    async def cancel(self, name: str, tenant: str) -> bool:
        """Ends that tenant's requests of this name, whoever asked for them; each ends with `Failed` of `Cancelled`.

        False where no engine has one.
        """

    async def forget_states(self) -> None:
        """Has the engines forget what images have left for others (`cache` similar), as far as they answer."""

    async def count_tokens(self, request: Request) -> tuple[TokenCount, TokenCount]:
        """Counts the tokens of the request's prompts, the negative one second, and makes nothing.

        Raises EngineError: EngineStopped where no engine has the model in memory.
        """

    async def make_hints(self, request: Request) -> tuple[bytes, ...]:
        """Makes the hints that the request's ControlNets would get, as PNG files, and no image. Raises EngineError."""

    async def enlarge(self, enlargement: Enlargement) -> bytes:
        """Enlarges a picture by an upscaler of the configuration. Returns a PNG file. Raises EngineError."""

    async def report(self) -> BackendReport:
        """The state of the engines, now."""

    async def close(self) -> None:
        """Frees what the backend holds; running requests are cancelled."""

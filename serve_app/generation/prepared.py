"""A request that is ready for the backend, together with what its caller asked for."""

from dataclasses import dataclass

from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready for the backend, together with what the caller asked for.

    `asked` has every default filled in and a seed; `request.params` differs from it only in the prompt, which has the
    style applied. A request of `asked` and the same uploads gives the same images.
    """

    request: Request
    asked: GenerationParams

"""Who asks: what the door knows of a request's sender, for everything behind it."""

from dataclasses import dataclass
from typing import Final, Literal

from fastapi import Request

from deployments.engine.params import Priority

Scope = Literal["generate", "operate"]


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant` shares engines and caches with nobody else; `priority` is the highest that may be asked for."""

    tenant: str = ""
    scopes: frozenset[Scope] = frozenset({"generate", "operate"})
    priority: Priority = "high"


ANYBODY: Final = Caller()
"""Where no keys are configured."""


def caller_of(request: Request) -> Caller:
    """The request's sender, as the door has found out."""
    caller: Caller = getattr(request.state, "caller", ANYBODY)
    return caller

"""The principal: who asks, and what it may ask for, for everything behind authentication."""

from dataclasses import dataclass
from typing import Final, get_args

from fastapi import Request

from deployments.engine.protocol.params import GenerationParams, Priority
from serve_app.api.exchange import exchange_of
from serve_app.api.problems import Fault, Problem, pointer_to
from serve_app.config.sections import NO_LIMITS, Limits, TrainingAllowance
from serve_app.gateway.api_keys import Scope

_PRIORITIES: Final = get_args(Priority)


@dataclass(frozen=True, slots=True)
class Principal:
    """`tenant` shares engines and caches with nobody else; `priority` is the highest that may be asked for.

    `key` is the id of the key that was given, "" where none is needed. `limits`, and the allowance for
    `training`, go before those for all keys.
    """

    tenant: str = ""
    scopes: frozenset[Scope] = frozenset({"generate", "train", "operate"})
    priority: Priority = "high"
    key: str = ""
    limits: Limits = NO_LIMITS
    training: TrainingAllowance | None = None

    def permitted(self, params: GenerationParams) -> GenerationParams:
        """`params`, at the caller's highest priority where the default is more than that.

        Raises Problem 403 where more was asked for: what is quietly made later than asked for would look like a fault.
        """
        if _PRIORITIES.index(params.priority) <= _PRIORITIES.index(self.priority):
            return params
        if "priority" not in params.model_fields_set:
            return params.model_copy(update={"priority": self.priority})
        code, message = "priority_not_allowed", f"may be at most {self.priority} with this key"
        faults = (Fault(pointer_to("priority"), code, message),)
        raise Problem(403, code, f"priority {message}", param="priority", faults=faults)


ANYBODY: Final = Principal()
"""Where no keys are configured."""

NOBODY: Final = Principal(scopes=frozenset())
"""Who asks without a key, where keys are configured, for what is open to all."""


def principal_of(request: Request) -> Principal:
    """The request's sender, as authentication has found it."""
    return exchange_of(request.scope).principal or ANYBODY

"""Errors that point to where Hugging Face's clients have put a field, and not to where it was translated to."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from deployments.engine.protocol.errors import EngineError
from deployments.engine.protocol.params import GenerationParams
from serve_app.api.problems import Problem, pointer_to, problem_of

INPUTS: Final = "inputs"
PARAMETERS: Final = "parameters"


@contextmanager
def inference_errors(places: Mapping[str, str]) -> Iterator[None]:
    """Raises the caller's mistakes with the places of the fields in its body. Other errors pass as they are.

    `places` are those of fields that are not in `parameters` under our own names.
    """
    try:
        yield
    except (EngineError, Problem) as error:
        problem = problem_of(error) if isinstance(error, EngineError) else error
        if problem.status >= 500:
            raise
        raise _relocate(problem, places) from None


def _relocate(problem: Problem, places: Mapping[str, str]) -> Problem:
    """Returns `problem` with its fields where they are in the body; one that has them already, as it is."""
    # A limit's name is no field's.
    is_field = problem.param in GenerationParams.model_fields or bool(problem.faults)
    moved = Problem(
        problem.status,
        problem.code,
        problem.message,
        param=_place_of(problem.param or "", places) if is_field else problem.param,
        faults=tuple(
            replace(fault, pointer=pointer_to(_place_of(fault.pointer.lstrip("#/"), places)))
            for fault in problem.faults
        ),
        headers=problem.headers,
    )
    moved.retryable = problem.retryable
    return moved


def _place_of(field: str, places: Mapping[str, str]) -> str:
    name, slash, inner = field.partition("/")
    if name in (INPUTS, PARAMETERS):
        return field
    return places.get(name, f"{PARAMETERS}/{name}".rstrip("/")) + slash + inner

"""Validates parameters: says which field breaks which rule, in our own words, and suggests what was meant."""

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from deployments.engine.protocol.params import MAX_SIDE, MIN_SIDE, GenerationParams
from deployments.engine.protocol.settings import ControlSettings, HiresSettings, LoraSettings, ReferenceSettings
from serve_app.api.problems import Fault, Problem, pointer_to

# Other servers' names for our fields.
_SYNONYMS: Mapping[str, str] = MappingProxyType(
    {
        "steps": "num_inference_steps",
        "cfg_scale": "guidance_scale",
        "cfg": "guidance_scale",
        "n": "num_images",
        "batch_size": "num_images",
        "num_images_per_prompt": "num_images",
        "model": "model_name",
        "style": "style_preset",
        "scheduler": "sampler",
        "sampler_name": "sampler",
        "format": "output_format",
        "response_format": "output_format",
        "denoising_strength": "strength",
        "mask_blur": "mask_feather",
        "inpainting_fill": "mask_fill",
        "inpainting_mask_invert": "mask_inverted",
        "inpaint_full_res_padding": "padding_mask_crop",
    }
)

# pydantic's error types -> our stable code, and our words. The names in braces are pydantic's `ctx`.
_RULES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "missing": ("required", "is required"),
        "int_type": ("wrong_type", "must be a whole number"),
        "int_parsing": ("wrong_type", "must be a whole number"),
        "float_type": ("wrong_type", "must be a number"),
        "string_type": ("wrong_type", "must be a string"),
        "string_unicode": ("invalid_unicode", "must be valid Unicode, without lone surrogates"),
        "finite_number": ("not_finite", "must be a finite number"),
        "float_parsing": ("wrong_type", "must be a number"),
        "bool_type": ("wrong_type", "must be true or false"),
        "bool_parsing": ("wrong_type", "must be true or false"),
        "model_type": ("wrong_type", "must be an object"),
        "list_type": ("wrong_type", "must be a list"),
        "too_short": ("too_short", "must have at least {min_length} entries"),
        "tuple_type": ("wrong_type", "must be a list"),
        "greater_than": ("too_small", "must be more than {gt}"),
        "greater_than_equal": ("too_small", "must be at least {ge}"),
        "less_than_equal": ("too_large", "must be at most {le}"),
        "multiple_of": ("not_a_multiple", "must be a multiple of {multiple_of}"),
        "string_pattern_mismatch": ("malformed", "has characters that it cannot have"),
        "string_too_long": ("too_long", "must have at most {max_length} characters"),
        "too_long": ("too_long", "must have at most {max_length} entries"),
        "literal_error": ("not_allowed", "must be {expected}"),
    }
)

_PARAMETERS: Final = tuple(GenerationParams.model_fields)

_PARTS: Final[Mapping[str, type[BaseModel]]] = MappingProxyType(
    {"controls": ControlSettings, "hires": HiresSettings, "loras": LoraSettings, "reference": ReferenceSettings}
)

_HARMLESS_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

MAX_FAULTS: Final = 20
"""Further mistakes are only counted. Each costs time, most of it to search for what was meant."""


def read_params(body: Any) -> GenerationParams:
    """Validates `body` as parameters. Raises Problem 422, which lists the first faults."""
    params = validate_params(body)
    if isinstance(params, Problem):
        raise params
    return params


def validate_params(body: Any, most: int = MAX_FAULTS, *, hints: bool = True) -> GenerationParams | Problem:
    """Validates `body` as parameters, or returns the problem 422 with the first `most` faults.

    Without `hints` it suggests nothing. A problem that is returned keeps no traceback alive: there may be a thousand.
    """
    try:
        return GenerationParams.model_validate(body)
    except ValidationError as error:
        problem = problem_of_errors(error, most=most, hints=hints)
    return problem


def problem_of_errors(
    error: ValidationError,
    place: str = "#/{}",
    known: Collection[str] = _PARAMETERS,
    most: int = MAX_FAULTS,
    *,
    hints: bool = True,
) -> Problem:
    """Turns pydantic's errors into one problem, in our words. `known` are the fields that the body has."""
    details = islice(error.errors(include_url=False), most)
    return problem_of_faults(
        tuple(fault_of(detail, place, known, hints=hints) for detail in details), error.error_count()
    )


def problem_of_faults(faults: tuple[Fault, ...], count: int) -> Problem:
    """The problem 422, described by the first of `count` faults; `faults` are those to list."""
    first = faults[0]
    field = first.pointer.lstrip("#/?") or None
    more = f" (and {count - 1} more)" if count > 1 else ""
    message = f"{field} {first.message}{more}" if field else f"{first.message}{more}"
    return Problem(422, first.code, message, param=field, faults=faults)


def fault_of(
    detail: Mapping[str, Any], place: str = "#/{}", known: Collection[str] = _PARAMETERS, *, hints: bool = True
) -> Fault:
    """Turns one of pydantic's errors into our words. `known` are the fields that the body has.

    Never repeats the input, except as the nearest value that is allowed.
    """
    path = [str(part) for part in detail["loc"]]
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_field(path, known, hints=hints)
    where = place.format("/".join(path))
    if kind == "value_error":
        # Ours: the text of a ValueError that one of the models' own validators raised.
        message = str(context["error"])
        return Fault(where, "invalid_value", message if hints else message.partition(";")[0])
    code, words = _RULES.get(kind, ("invalid_value", "is not valid"))
    return Fault(where, code, words.format_map(context) + _suggest_multiple(detail))


def _unknown_field(path: Sequence[str], fields: Collection[str], *, hints: bool) -> Fault:
    """Repeats the field's name, which is the caller's own, only if it is harmless."""
    *above, name = path
    known = _PARTS.get(above[0], ControlSettings).model_fields if above else fields
    hint = _suggest_field(name, list(known), above) if hints else ""
    if _HARMLESS_NAME.fullmatch(name):
        return Fault(pointer_to("/".join(path)), "unknown_field", f"is not a field{hint}")
    return Fault(pointer_to("/".join(above)), "unknown_field", f"unknown field{hint}")


def _suggest_field(name: str, known: Sequence[str], above: Sequence[str]) -> str:
    synonym = None if above else _SYNONYMS.get(name[:64].lower())
    synonym = synonym if synonym in known else None
    near = synonym or next(iter(get_close_matches(name[:64], known, n=1)), None)
    return f"; did you mean {near}?" if near else f"; the fields are {', '.join(known)}"


def _suggest_multiple(detail: Mapping[str, Any]) -> str:
    if detail["type"] != "multiple_of":
        return ""
    step, given = int(detail["ctx"]["multiple_of"]), int(detail["input"])
    below = given // step * step
    # Sides are the only fields that have a step.
    nearest = dict.fromkeys(str(min(max(value, MIN_SIDE), MAX_SIDE)) for value in (below, below + step))
    return f"; nearest: {' or '.join(nearest)}"

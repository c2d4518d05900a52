"""Messages about a wrong configuration: where, what, and what was probably meant."""

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

Path = tuple[int | str, ...]


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names each offending key by its path, one per line."""


def suggest(name: object, known: Iterable[str]) -> str:
    """The end of a sentence about `name`: what was probably meant, or what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"


def describe_errors(error: ValidationError, *, tell_values: bool = True) -> Iterator[str]:
    """Yields one line per error: its path, what is wrong, and the value found there, if `tell_values`."""
    problems = error.errors(include_url=False)
    for problem in problems:
        # pydantic also reports a list with wrong items as too short.
        if problem["type"] == "too_short" and any(_is_within(other["loc"], problem["loc"]) for other in problems):
            continue
        path, given = _format_path(problem["loc"]), _format_value(problem["input"]) if tell_values else ""
        yield f"{path + ': ' if path else ''}{problem['msg'].removeprefix('Value error, ')}{given}"


def _format_path(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _format_value(value: Any) -> str:
    return "" if isinstance(value, dict | list) else f", got {json.dumps(value, default=str)}"


def _is_within(inner: Path, outer: Path) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer

"""Reads YAML that people have written, and says what is wrong with it: where, what, and what was probably meant."""

import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

Place = tuple[int | str, ...]


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names each offending key by its path, one per line."""


def read_yaml(file: Path) -> Any:
    """Reads the document in a file. Raises ConfigError, which names the file."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{file}: cannot be read as text") from None
    return parse_yaml(text, str(file))


def parse_yaml(text: str, what: str, *, tell_content: bool = True) -> Any:
    """Parses one document. Raises ConfigError, which names `what` it is, and repeats some of it if `tell_content`."""
    try:
        return yaml.safe_load(text)
    # Besides its own errors, PyYAML lets through those of what it makes values with: a date without such a day,
    # a number without digits, lists that are nested too deeply.
    except Exception as error:
        told = f": {' '.join(str(error).split())}" if tell_content else ""
        raise ConfigError(f"{what}: not valid YAML{told}") from None


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


def _format_path(path: Place) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _format_value(value: Any) -> str:
    return "" if isinstance(value, dict | list) else f", got {json.dumps(value, default=str)}"


def _is_within(inner: Place, outer: Place) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer

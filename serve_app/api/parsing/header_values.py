"""Parses header values with parameters, such as `form-data; name="mask"`, and refuses ambiguous ones."""

import re
from typing import Final

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MAIN: Final = re.compile(rf"\s*({_TOKEN}(?:/{_TOKEN})?)[ \t]*")
# Browsers escape file names in different ways; the name does not matter here.
_PARAMETER: Final = re.compile(rf';[ \t]*(?:({_TOKEN})=(?:"((?:[^"\\]|\\.)*+)"|([^;"\s]*))[ \t]*)?', re.DOTALL)

MAX_LENGTH: Final = 8192


def parse_header_value(header: str) -> tuple[str, dict[str, str]]:
    """Returns the header's value in lower case, and its parameters by their names in lower case.

    Raises ValueError if it is too long, malformed, or repeats a parameter: two readers could pick different ones.
    """
    main = _MAIN.match(header) if len(header) <= MAX_LENGTH else None
    if main is None:
        raise ValueError("malformed")
    parameters: dict[str, str] = {}
    at = main.end()
    while at < len(header):
        found = _PARAMETER.match(header, at)
        if found is None:
            raise ValueError("malformed")
        at = found.end()
        name, quoted, bare = found.groups()
        if name is None:
            continue
        if name.lower() in parameters:
            raise ValueError("a parameter is there twice")
        parameters[name.lower()] = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    return main[1].lower(), parameters

"""Checks texts: any Unicode is allowed, apart from characters that only steer terminals and parsers."""

import re
from typing import Final

_LINES: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_NAMES: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATES: Final = re.compile(r"[\ud800-\udfff]")


def check_lines(text: str) -> str:
    """Returns `text`, which may have several lines. Raises ValueError, which states the rule."""
    if _LINES.search(text):
        raise ValueError("must not have control characters other than line breaks and tabs")
    return _check_unicode(text)


def check_name(text: str) -> str:
    """Returns `text`, a name on one line. Raises ValueError, which states the rule."""
    if _NAMES.search(text):
        raise ValueError("must not have control characters")
    return _check_unicode(text)


def _check_unicode(text: str) -> str:
    if _SURROGATES.search(text):
        raise ValueError("must be valid Unicode, without lone surrogates")
    return text

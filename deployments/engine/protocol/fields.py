"""What the fields of requests are made of: strict models, and texts without characters that only steer terminals and
parsers. No torch.
"""

import re
from typing import Any, Final, get_args

from pydantic import BaseModel, ConfigDict, model_validator

# Above it one float may stand for several integers.
_LAST_EXACT: Final = 2**53


class StrictFields(BaseModel):
    """A model with strict fields; but null is the same as leaving an optional field out, and 128.0 is 128."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: Any) -> Any:
        return normalise_fields(data, cls) if isinstance(data, dict) else data


def normalise_fields(data: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Returns `data` as `model` takes it: without optional fields that are null, and with whole numbers as
    integers.
    """
    read = {}
    for name, value in data.items():
        field = model.model_fields.get(name)
        if field is None or value is not None or field.is_required():
            read[name] = _as_whole(value) if field is not None and _is_whole(field.annotation) else value
    return read


def _as_whole(value: Any) -> Any:
    """Converts a float that is a whole number to an integer; other values stay, for the field's own rule to refuse."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= _LAST_EXACT
    return int(value) if whole else value


def _is_whole(annotation: Any) -> bool:
    return annotation is int or any(_is_whole(part) for part in get_args(annotation))


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

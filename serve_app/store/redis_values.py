"""Parses what is read from Redis, where anybody with access may have written anything, of any type.

Values are read with a bound on their length, and either have the form that this service gives them or are Damaged.
Damage costs what was lost, is counted and logged (`RedisTier.note_damage`), and never reaches an answer.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.exceptions import ResponseError

JOB_ID: Final = re.compile(r"[0-9a-f]{32}")
WORD: Final = re.compile(r"[0-9a-f]{16,64}")

# Fewer digits than make an integer that a double cannot hold: Redis counts with them in scripts.
_NUMBER: Final = re.compile(r"[0-9]{1,15}")

Kinds = Mapping[str, str]
"""Keys, and the type in Redis of what this service keeps there."""

MEND: Final = """
local mended = 0
for i, key in ipairs(KEYS) do
  local kind = redis.call('type', key).ok
  if kind ~= 'none' and kind ~= ARGV[i] then
    redis.call('del', key)
    mended = mended + 1
  end
end
return mended
"""
"""Removes what is of another type than ours: it has taken the place of what was there, and makes every write fail."""


class Damaged(Exception):
    """Not of the form that this service gives to what it keeps there."""


def is_wrong_type(error: object) -> bool:
    """Whether Redis reports that a key has another type than the command needs."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def content(answer: Any, most: int) -> bytes | None:
    """Returns the answer of a GETRANGE of one byte more than `most`; None where nothing is there. Raises Damaged."""
    if is_wrong_type(answer):
        raise Damaged("it has another type")
    if isinstance(answer, Exception):
        raise answer
    if answer is not None and not isinstance(answer, bytes):
        raise Damaged("it is no string")
    if answer and len(answer) > most:
        raise Damaged("it is too long")
    return answer or None


def word(data: Any, form: re.Pattern[str] = WORD) -> str:
    """Returns an identifier of ours. Raises Damaged."""
    text = data.decode("ascii", errors="replace") if isinstance(data, bytes) and len(data) <= 256 else ""
    if form.fullmatch(text) is None:
        raise Damaged("it is no word of ours")
    return text


def words(data: Any, form: re.Pattern[str] = WORD) -> list[str]:
    """Returns those of a list that are identifiers of ours."""
    found = [each.decode("ascii", errors="replace") for each in listed(data) if isinstance(each, bytes)]
    return [text for text in found if form.fullmatch(text)]


def listed(data: Any) -> Sequence[Any]:
    """Returns a list, as scripts and ranges answer. Raises Damaged."""
    if not isinstance(data, list):
        raise Damaged("it is no list")
    return data


def number(data: Any, otherwise: int = 0) -> int:
    """Returns a counter of ours; `otherwise` where it is none."""
    if isinstance(data, int) and not isinstance(data, bool):
        return max(0, data)
    text = data.decode("ascii", errors="replace") if isinstance(data, bytes) and len(data) < 16 else ""
    return int(text) if _NUMBER.fullmatch(text) else otherwise


def moment(data: Any) -> float:
    """Returns seconds since 1970; 0 for what is no time."""
    return data if isinstance(data, float) and math.isfinite(data) else 0.0

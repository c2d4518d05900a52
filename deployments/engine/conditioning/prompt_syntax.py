r"""The attention syntax of prompts, as AUTOMATIC1111's web UI has it. No torch here.

    (word)          attention x 1.1; ((word)) x 1.21
    (word:1.25)     attention x 1.25
    [word]          attention / 1.1
    \( \) \[ \] \\  the characters themselves
    BREAK           (upper case, a word of its own) what follows starts a new chunk of tokens

Brackets may nest, and round and square ones may interleave. A bracket that is never closed closes at the end of the
prompt; one that closes nothing is text, and so is a backslash before any other character.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from deployments.engine.protocol.errors import InvalidParameter

BRACKET_FACTOR: Final = 1.1
MAX_WEIGHT: Final = 10.0

_TOKEN: Final = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|(?P<bracket>[()\[\]])"
    r"|:\s*(?P<weight>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)"
    r"|[^\\()\[\]:]+|[\\:]"
)
_BREAK: Final = re.compile(r"\bBREAK\b")
# Far beyond any level that can be accepted, and its power is still finite.
_DEEPEST: Final = 7000


@dataclass(frozen=True)
class Fragment:
    """Text of one weight, 0 to 10. `new_chunk`: a BREAK stands before it; only then may `text` be empty."""

    text: str
    weight: float = 1.0
    new_chunk: bool = False


def parse_weighted(prompt: str, field: str = "prompt") -> tuple[Fragment, ...]:
    """Returns the fragments of `prompt` in order, neighbours of equal weight merged; () for an empty prompt. Linear
    time.

    Raises InvalidParameter for `field` if some text's weight, all brackets around it multiplied, is not in 0 to 10.
    """
    weighted = ((_check_weight(piece.weight(), field), piece.text) for piece in _scan(prompt))
    merged = (("".join(text for _, text in run), weight) for weight, run in groupby(weighted, lambda pair: pair[0]))
    return tuple(_split_at_breaks(merged))


@dataclass
class _Group:
    """A pair of round brackets. Its weight is known only where it closes, after its text has been read."""

    parent: "_Group | None" = None
    explicit: float | None = None
    level: int = 0
    factor: float = 1.0

    def inherit(self, parent: "_Group") -> None:
        self.level = parent.level + (self.explicit is None)
        self.factor = parent.factor * (1.0 if self.explicit is None else self.explicit)


@dataclass(frozen=True)
class _Piece:
    """Literal text, the innermost round brackets and the number of square brackets around it."""

    text: str
    group: _Group
    square: int

    def weight(self) -> float:
        # Counting before multiplying makes [(word)] exactly 1.
        level = max(-_DEEPEST, min(_DEEPEST, self.group.level - self.square))
        return float(self.group.factor * BRACKET_FACTOR**level)


def _scan(prompt: str) -> list[_Piece]:
    group = _Group()
    groups: list[_Group] = []
    square = 0
    pieces: list[_Piece] = []
    for token in _TOKEN.finditer(prompt):
        match token["bracket"]:
            case "(":
                group = _Group(group)
                groups.append(group)
            case "[":
                square += 1
            case "]" if square:
                square -= 1
            case ")" if group.parent:
                group = group.parent
            case None if token["weight"] and group.parent:
                group.explicit = float(token["weight"])
                group = group.parent
            case _:
                pieces.append(_Piece(token["escaped"] or token[0], group, square))
    for group in groups:  # parents come before their children
        if group.parent:
            group.inherit(group.parent)
    return pieces


def _check_weight(weight: float, field: str) -> float:
    if not 0.0 <= weight <= MAX_WEIGHT:
        raise InvalidParameter(
            field, f"the weight of every word, brackets multiplied, must be between 0 and {MAX_WEIGHT:g}"
        )
    return weight


def _split_at_breaks(weighted: Iterable[tuple[str, float]]) -> Iterator[Fragment]:
    for text, weight in weighted:
        parts = _BREAK.split(text)
        for i, part in enumerate(parts):
            # Spaces beside a BREAK belong to it.
            part = part.lstrip() if i else part
            part = part.rstrip() if i < len(parts) - 1 else part
            if part or i:
                yield Fragment(part, weight, new_chunk=i > 0)

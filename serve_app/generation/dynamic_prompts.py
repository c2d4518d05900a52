"""Dynamic prompts: one text that stands for many, in the syntax that sd-dynamic-prompts made common.

`{red|blue|green}` is one of its options, each of which may have options of its own; `__colour__` is one line of the
wildcard list of that name. A backslash takes the meaning from the character behind it. Anything else is text.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice, product
from types import MappingProxyType
from typing import Final

from deployments.engine.protocol.errors import InvalidParameter

Wildcards = Mapping[str, Sequence[str]]

NO_WILDCARDS: Final[Wildcards] = MappingProxyType({})

MAX_DEPTH: Final = 8
MAX_OPTIONS: Final = 1_000
MAX_CHARACTERS: Final = 8_000
"""Of every text that a prompt stands for, as of any prompt."""

_TOKEN: Final = re.compile(
    r"\\(?P<escaped>.)|(?P<bracket>[{}|])|__(?P<wildcard>[a-z][a-z0-9_]{0,62}[a-z0-9])__", re.DOTALL
)

_FIELD: Final = "prompt"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several options."""

    options: tuple["Parts", ...]


Parts = tuple[str | Choice, ...]
"""A text in order: pieces that stand, and choices."""


def parse_dynamic(text: str, wildcards: Wildcards) -> Parts:
    """Returns the parts of a dynamic prompt. Raises InvalidParameter for brackets without a partner, and lists that are
    not there.
    """
    # For each open bracket, its finished options and the parts of the one at hand; the text itself is the first.
    open_options: list[list[Parts]] = [[]]
    open_parts: list[list[str | Choice]] = [[]]
    at = options = 0
    for token in _TOKEN.finditer(text):
        open_parts[-1].append(text[at : token.start()])
        at = token.end()
        if token["escaped"] is not None:
            # Brackets of weights keep their own backslashes: they are read later.
            open_parts[-1].append(token["escaped"] if token["escaped"] in "{}|_\\" else token[0])
        elif token["wildcard"] is not None:
            lines = _lines_of(token["wildcard"], wildcards)
            options += len(lines)
            open_parts[-1].append(Choice(tuple((line,) for line in lines)))
        elif token["bracket"] == "{":
            if len(open_parts) > MAX_DEPTH:
                raise InvalidParameter(_FIELD, f"may have options in options {MAX_DEPTH} times, no deeper")
            open_options.append([])
            open_parts.append([])
        elif token["bracket"] == "|" and len(open_parts) > 1:
            options += 1
            open_options[-1].append(tuple(open_parts[-1]))
            open_parts[-1] = []
        elif token["bracket"] == "|":
            open_parts[-1].append("|")
        else:
            if len(open_parts) == 1:
                raise InvalidParameter(_FIELD, "closes a bracket } that was not opened; a backslash before it keeps it")
            options += 1
            choice = Choice((*open_options.pop(), tuple(open_parts.pop())))
            open_parts[-1].append(choice)
        if options > MAX_OPTIONS:
            raise InvalidParameter(_FIELD, f"may have at most {MAX_OPTIONS} options in all")
    if len(open_parts) > 1:
        raise InvalidParameter(_FIELD, "opens a bracket { that is not closed; a backslash before it keeps it")
    parts = (*open_parts[0], text[at:])
    if _longest(parts) > MAX_CHARACTERS:
        raise InvalidParameter(_FIELD, f"may stand for texts of at most {MAX_CHARACTERS} characters")
    return parts


def _longest(parts: Parts) -> int:
    """Returns the characters of the longest text, none of which has to be made for that."""
    return sum(len(part) if isinstance(part, str) else max(map(_longest, part.options)) for part in parts)


def count_combinations(parts: Parts) -> int:
    """Returns how many texts there are, equal ones counted as often as they come."""
    total = 1
    for part in parts:
        if isinstance(part, Choice):
            total *= sum(count_combinations(option) for option in part.options)
    return total


def list_combinations(parts: Parts) -> list[str]:
    """Returns every text once, in the order of the options. Call `count_combinations` before."""
    return list(dict.fromkeys(_combine(parts)))


def draw_variants(parts: Parts, count: int, seed: int) -> list[str]:
    """Returns `count` texts; text i is the same for the same `seed + i`, whatever the others are."""
    return [_draw(parts, random.Random(seed + index)) for index in range(count)]


def _combine(parts: Parts) -> Iterator[str]:
    pieces = [[part] if isinstance(part, str) else [*_options_of(part)] for part in parts]
    for chosen in product(*pieces):
        yield "".join(chosen)


def _options_of(choice: Choice) -> Iterator[str]:
    for option in choice.options:
        yield from _combine(option)


def _draw(parts: Parts, generator: random.Random) -> str:
    return "".join(
        part if isinstance(part, str) else _draw(generator.choice(part.options), generator) for part in parts
    )


def _lines_of(name: str, wildcards: Wildcards) -> Sequence[str]:
    if name in wildcards:
        return wildcards[name]
    near = get_close_matches(name, wildcards, n=3)
    known = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(islice(wildcards, 20)) or 'none'}"
    raise InvalidParameter(_FIELD, f"names a wildcard list that is not there; {known}")

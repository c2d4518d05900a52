"""Expands requests of a batch: for every row of values, every advertisement's format, every variant of the prompt."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.fields import StrictFields, normalise_fields
from deployments.engine.protocol.params import MAX_VALUES, GenerationParams
from serve_app.generation.dynamic_prompts import (
    Parts,
    Wildcards,
    count_combinations,
    draw_variants,
    list_combinations,
    parse_dynamic,
)
from serve_app.generation.prepare import draw_seed

MAX_ROWS: Final = 10_000

_PLAIN: Final[tuple[None]] = (None,)


class Expansion(StrictFields):
    """How each of a batch's requests becomes several.

    `values` are rows of template values, or `csv` has them with a first line of names. `ad_formats` are the sizes to
    make each in. `variants` is how many texts are drawn from a prompt with options, or `all` of them; without it, what
    looks like options is text.
    """

    values: list[dict[str, str]] = Field(default_factory=list, max_length=MAX_ROWS)
    csv: str | None = Field(default=None, max_length=1_000_000)
    ad_formats: list[str] = Field(default_factory=list, max_length=100)
    variants: int | Literal["all"] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.csv is not None and self.values:
            raise ValueError("values and csv exclude each other")
        if isinstance(self.variants, int) and not 1 <= self.variants <= MAX_ROWS:
            raise ValueError(f"variants must be from 1 to {MAX_ROWS}, or all")
        return self

    def rows(self) -> Sequence[Mapping[str, str]]:
        """Returns the rows of values. Raises InvalidParameter for a CSV that is none."""
        return self.values if self.csv is None else read_csv(self.csv)


def read_csv(text: str) -> Sequence[Mapping[str, str]]:
    """Returns the rows of a CSV whose first line has the names. Raises InvalidParameter."""
    try:
        lines = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
    except csv.Error:
        raise InvalidParameter("expand/csv", "cannot be read: its quotes or line ends are broken") from None
    lines = [line for line in lines if any(cell.strip() for cell in line)]
    if len(lines) < 2:
        raise InvalidParameter("expand/csv", "must have a first line of names, and rows under it")
    names = [name.strip() for name in lines[0]]
    if len(set(names)) < len(names) or not all(names) or len(names) > MAX_VALUES:
        raise InvalidParameter("expand/csv", f"must have different names in its first line, at most {MAX_VALUES}")
    if any(len(line) != len(names) for line in lines[1:]):
        raise InvalidParameter("expand/csv", "must have as many cells in every row as there are names")
    return [dict(zip(names, (cell.strip() for cell in line), strict=True)) for line in lines[1:]]


@dataclass(frozen=True, slots=True)
class ExpandedEntry:
    """The `fields` of an entry, or what stands in their place; `seed_drawn` says that its request had no seed."""

    fields: Any
    seed_drawn: bool = False


def expand(
    requests: Sequence[Any], expansion: Expansion, wildcards: Wildcards, most: int
) -> Iterator[ExpandedEntry] | int:
    """Yields the requests, expanded; or returns how many there would be, where they are more than `most`.

    In order of requests, rows, variants, formats. A request without a seed gets one, so that its variants can be made
    again. Raises InvalidParameter for options that cannot be read.
    """
    rows: Sequence[Mapping[str, str] | None] = expansion.rows() or _PLAIN
    formats: Sequence[str | None] = expansion.ad_formats or _PLAIN
    parsed = [_parse(entry, expansion, wildcards) for entry in requests]
    total = sum(_count(parts, expansion) for parts in parsed) * len(rows) * len(formats)
    if total > most:
        return total
    return _expand_all(requests, expansion, parsed, rows, formats)


def _expand_all(
    requests: Sequence[Any],
    expansion: Expansion,
    parsed: Sequence[Parts | None],
    rows: Sequence[Mapping[str, str] | None],
    formats: Sequence[str | None],
) -> Iterator[ExpandedEntry]:
    for entry, parts in zip(requests, parsed, strict=True):
        if not isinstance(entry, dict):
            # What it is instead is told by whoever validates it.
            yield ExpandedEntry(entry)
            continue
        given = _seed_of(entry)
        seed = draw_seed() if given == -1 else given
        for row, (variant, prompt), name in product(rows, enumerate(_texts(parts, expansion, seed)), formats):
            seeded = seed is not None and parts is not None
            fields = {**entry, "seed": (seed or 0) + variant} if seeded else {**entry}
            if prompt is not None:
                fields["prompt"] = prompt
            if row is not None:
                own = entry.get("template_values")
                fields["template_values"] = {**(own if isinstance(own, dict) else {}), **row}
            if name is not None:
                fields["ad_format"] = name
            yield ExpandedEntry(fields, seed_drawn=seeded and given == -1)


def _parse(entry: Any, expansion: Expansion, wildcards: Wildcards) -> Parts | None:
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    if expansion.variants is None or not isinstance(prompt, str):
        return None
    return parse_dynamic(prompt, wildcards)


def _count(parts: Parts | None, expansion: Expansion) -> int:
    if parts is None:
        return 1
    return count_combinations(parts) if expansion.variants == "all" else int(expansion.variants or 1)


def _texts(parts: Parts | None, expansion: Expansion, seed: int | None) -> Sequence[str | None]:
    if parts is None:
        return _PLAIN
    if expansion.variants == "all":
        return list_combinations(parts)
    return draw_variants(parts, int(expansion.variants or 1), seed or 0)


def _seed_of(entry: Mapping[str, Any]) -> int | None:
    """Returns an entry's seed, -1 if it has none; None for what is no seed, and will be refused as it is."""
    given = normalise_fields({"seed": entry.get("seed")}, GenerationParams).get("seed", -1)
    if isinstance(given, bool) or not isinstance(given, int) or given < -1:
        return None
    return given

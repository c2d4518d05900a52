"""Puts together what clients take apart for a form: `loras[][name]`, `hires[scale]`, `output_size[]`.

The entries of a list come in order, under one name. So objects in a list must all have the same fields: it could not be
told which of them a value is for.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.params import GenerationParams
from serve_app.api.parsing.forms import convert_text

# No field of ours goes deeper. What is empty between brackets is a list.
_NAME: Final = re.compile(r"(?P<field>[a-z_]+)(?P<path>(\[[^\[\]]*\]){1,3})")
_STEP: Final = re.compile(r"\[([^\[\]]*)\]")
_ENTRY: Final = ""

Path = tuple[str, ...]
Schema = Mapping[str, Any]

_SCHEMA: Final[Schema] = GenerationParams.model_json_schema()


def join_fields(parameters: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Returns a form's `parameters`, those of `fields` whole that came in parts. Raises InvalidParameter."""
    joined: dict[str, Any] = {}
    parts: dict[str, dict[Path, list[str]]] = {}
    for name, value in parameters.items():
        found = _NAME.fullmatch(name)
        if found is not None and found["field"] in fields:
            path = tuple(_STEP.findall(found["path"]))
            parts.setdefault(found["field"], {})[path] = _texts_in(value, found["field"])
        else:
            joined[name] = value
    for field, texts in parts.items():
        if field in joined:
            raise InvalidParameter(field, "is there twice, whole and in parts")
        joined[field] = _join(field, texts, [_SCHEMA["properties"][field]])
    return joined


def _texts_in(value: Any, field: str) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidParameter(field, "must have texts in its parts; send it whole in `params`")
    return texts


def _join(field: str, texts: Mapping[Path, Sequence[str]], schemas: Sequence[Schema]) -> Any:
    """Joins what was sent below one place, by the rest of its path. `schemas` are what the place may hold."""
    schemas = list(_alternatives(schemas))
    if list(texts) == [()]:
        (sent,) = texts.values()
        if len(sent) > 1:
            raise InvalidParameter(field, "must have each of its parts once")
        return convert_text(sent[0], _types_of(schemas))
    steps = {path[:1] for path in texts}
    if steps == {(_ENTRY,)}:
        return _join_list(field, {path[1:]: sent for path, sent in texts.items()}, schemas)
    if () in steps or (_ENTRY,) in steps:
        raise InvalidParameter(field, "must be a list or an object, and not both")
    joined = {}
    for (step,) in sorted(steps):
        below = [schema["properties"][step] for schema in schemas if step in schema.get("properties", {})]
        value = _join(field, {path[1:]: sent for path, sent in texts.items() if path[0] == step}, below)
        if value != "" or not _may_be_left_out(below):
            joined[step] = value
    return joined


def _join_list(field: str, texts: Mapping[Path, Sequence[str]], schemas: Sequence[Schema]) -> list[Any]:
    if len({len(sent) for sent in texts.values()}) > 1:
        raise InvalidParameter(field, "must have the same fields in all its entries, in a form")
    if any(_ENTRY in path for path in texts):
        raise InvalidParameter(field, "cannot have lists in a list, in a form")
    below = [schema["items"] for schema in schemas if "items" in schema]
    below += [schema["prefixItems"][0] for schema in schemas if "prefixItems" in schema]
    count = len(next(iter(texts.values())))
    return [_join(field, {path: [sent[index]] for path, sent in texts.items()}, below) for index in range(count)]


def _may_be_left_out(schemas: Sequence[Schema]) -> bool:
    """Whether an empty text says nothing: where a text, it is one."""
    types = _types_of(list(_alternatives(schemas)))
    return "null" in types or bool(types - {"string"})


def _types_of(schemas: Sequence[Schema]) -> set[str]:
    return {schema["type"] for schema in schemas if "type" in schema}


def _alternatives(schemas: Sequence[Schema]) -> Iterator[Schema]:
    """Yields what a place may hold: of a choice all that there is, and of a reference what it refers to."""
    for schema in schemas:
        for each in schema.get("anyOf", [schema]):
            yield _SCHEMA["$defs"][each["$ref"].rpartition("/")[2]] if "$ref" in each else each

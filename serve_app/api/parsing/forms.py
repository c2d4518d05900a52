"""Reads multipart forms strictly: checks which parts are there, and converts their text."""

import asyncio
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel
from starlette.requests import Request

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.fields import check_name
from deployments.engine.protocol.params import GenerationParams
from serve_app.api.parsing.body import check_content_headers, parse_json_object, read_body
from serve_app.api.parsing.multipart import FormPart, parse_parts
from serve_app.api.parsing.validation import read_params
from serve_app.api.problems import Fault, Problem, pointer_to

MAX_UPLOAD_BYTES: Final = 32 * 1024 * 1024
MAX_FILES: Final = 8
MAX_FIELDS: Final = 64
MAX_TEXT_BYTES: Final = 256 * 1024

PARAMS: Final = "params"
"""The part that may hold all parameters at once, as a JSON object."""

# Each character can match in one way only, or a long text could keep the process busy for minutes.
_WHOLE = re.compile(r"-?\d{1,30}", re.ASCII)
_NUMBER = re.compile(r"-?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,3})?", re.ASCII)
_FLAGS: Final = {"true": True, "false": False, "1": True, "0": False}


def json_types_of(model: type[BaseModel]) -> Mapping[str, frozenset[str]]:
    """The JSON types that each field of `model` accepts."""
    properties = model.model_json_schema()["properties"]
    return MappingProxyType({name: frozenset(_types_in(schema)) for name, schema in properties.items()})


def _types_in(schema: Mapping[str, Any]) -> Iterator[str]:
    for part in schema.get("anyOf", [schema]):
        # What is defined elsewhere in the schema, and referred to, is a model of its own.
        yield part.get("type", "object" if "$ref" in part else "")


def _entry_types_in(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yields the JSON types that the entries of a list may have."""
    for part in schema.get("anyOf", [schema]):
        for entry in (part.get("items"), *part.get("prefixItems", ())):
            yield from _types_in(entry) if isinstance(entry, dict) else ()


_LISTS: Final = ({"array"}, {"array", "null"})
"""The types of fields that are lists, and nothing else."""


@dataclass(frozen=True, slots=True)
class _FormFields:
    """What a form's text fields may be, by name: their JSON `types`, those of a list's `entries`, and the `optional`
    ones.
    """

    types: Mapping[str, frozenset[str]]
    entries: Mapping[str, frozenset[str]]
    optional: frozenset[str]

    def is_list_of_texts(self, name: str) -> bool:
        """Whether a text that is there once is a list of one: JSON's brackets have no place in a form."""
        return self.types.get(name, frozenset()) in _LISTS and "string" in self.entries[name]


@cache
def _fields_of(model: type[BaseModel]) -> _FormFields:
    properties = model.model_json_schema()["properties"]
    return _FormFields(
        json_types_of(model),
        {name: frozenset(_entry_types_in(schema)) for name, schema in properties.items()},
        frozenset(name for name, field in model.model_fields.items() if not field.is_required()),
    )


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of a form by name: `files`, the endpoint's own `options` as texts, and the `parameters`, converted.

    A part that was left out is absent. Where an option has several texts, an empty one keeps its place as "".
    """

    files: Mapping[str, tuple[bytes, ...]]
    options: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, Any]

    def get_file(self, name: str) -> bytes | None:
        """Returns the one file of that name, or None. Raises InvalidParameter if there are more."""
        found = self.files.get(name, ())
        if len(found) > 1:
            raise InvalidParameter(name, "must be one file")
        return found[0] if found else None

    def require_file(self, name: str) -> bytes:
        """Returns the one file of that name. Raises InvalidParameter unless there is exactly one."""
        found = self.get_file(name)
        if found is None:
            raise InvalidParameter(name, "is required, as a file")
        return found

    def get_numbers(self, name: str, default: float) -> list[float]:
        """Returns the texts of that name as numbers, empty ones as `default`. Raises InvalidParameter."""
        texts = self.options.get(name, ())
        if not all(_NUMBER.fullmatch(text) for text in texts if text):
            raise InvalidParameter(name, "must be a number")
        return [float(text) if text else default for text in texts]

    def get_option(self, name: str) -> str | None:
        """Returns the one text of that name; None if it is left out. Raises InvalidParameter if there are more."""
        found = [text for text in self.options.get(name, ()) if text]
        if len(found) > 1:
            raise InvalidParameter(name, "must be there once")
        return found[0] if found else None

    def get_flag(self, name: str) -> bool:
        """Returns true or false (also 1 or 0); false if it is left out. Raises InvalidParameter."""
        text = (self.get_option(name) or "false").lower()
        if text not in _FLAGS:
            raise InvalidParameter(name, "must be true or false")
        return _FLAGS[text]

    def read_params(self, **more: Any) -> GenerationParams:
        """Validates the parameters, with `more` that the endpoint has worked out. Raises Problem 422."""
        return read_params({**self.parameters, **more})


def is_form(request: Request) -> bool:
    """Whether the body is announced as a form."""
    return request.headers.get("content-type", "").strip().lower().startswith("multipart/")


async def read_form(
    request: Request,
    max_bytes: int,
    files: Collection[str],
    options: Collection[str],
    max_files: int = MAX_FILES,
    model: type[BaseModel] = GenerationParams,
) -> Form:
    """Reads the request's form. `files` and `options` name the endpoint's own parts; all others are parameters, fields
    of `model`.

    An empty field counts as left out, and so does a file input without a chosen file.
    Raises Problem: 400, 408, 413, 415, 422; or InvalidParameter.
    """
    content_type = check_content_headers(request, "multipart/form-data")
    body = await read_body(request, max_bytes)
    # In a thread, so that other requests are served meanwhile.
    return await asyncio.to_thread(parse_form, body, content_type, files, options, max_files, model)


def parse_form(
    body: bytes,
    content_type: dict[str, str],
    files: Collection[str],
    options: Collection[str],
    max_files: int = MAX_FILES,
    model: type[BaseModel] = GenerationParams,
) -> Form:
    """Parses a body that has been read, given the parameters of its content type. Raises as `read_form` does."""
    found: dict[str, list[bytes]] = {}
    texts: dict[str, list[str]] = {}
    fields = _fields_of(model)
    parts = parse_parts(body, content_type, max_files + MAX_FIELDS)
    _check_counts(parts, files, max_files)
    for part in parts:
        if part.name in files:
            _check_transfer_encoding(part, part.name)
            if not part.data and part.filename:
                raise InvalidParameter(part.name, "is an empty file")
            if not part.is_empty:
                found.setdefault(part.name, []).append(part.data)
        else:
            texts.setdefault(part.name, []).append(_read_text(part, files, options, fields))
    values = _merge_parameters(texts, options, fields)
    chosen = {name: _read_texts(name, values.pop(name)) for name in options if name in values}
    chosen = {name: sent for name, sent in chosen.items() if any(sent)}
    return Form({name: tuple(each) for name, each in found.items()}, chosen, values)


def _check_counts(parts: Collection[FormPart], files: Collection[str], max_files: int) -> None:
    """Raises Problem for too many files or fields."""
    count = sum(part.name in files or part.filename is not None for part in parts)
    if count > max_files or len(parts) - count > MAX_FIELDS:
        message = f"the form cannot be read: it may have at most {max_files} files and {MAX_FIELDS} fields"
        raise Problem(400, "invalid_form", message)


def _merge_parameters(texts: Mapping[str, list[str]], options: Collection[str], fields: _FormFields) -> dict[str, Any]:
    """Merges the fields with those of the `params` part; a field that is repeated becomes a list."""
    whole = [text for text in texts.get(PARAMS, ()) if text.strip() not in ("", "null")]
    if len(whole) > 1:
        raise InvalidParameter(PARAMS, "must be there once")
    values = parse_json_object(whole[0].encode()) if whole else {}
    known = {*options, *fields.types}
    values = {name: value for name, value in values.items() if value is not None or name not in known}
    for name, sent in texts.items():
        if name == PARAMS:
            continue
        if name in fields.optional:
            sent = [text for text in sent if text]
        if not any(sent) and name in (*options, *fields.optional):
            continue
        if name in values and name in known:
            raise InvalidParameter(name, "is there twice, as a field and in `params`")
        is_list = name in options or len(sent) > 1 or fields.is_list_of_texts(name)
        kinds = fields.types.get(name, frozenset())
        if is_list:
            values[name] = [convert_text(text, fields.entries.get(name, ())) for text in sent]
        else:
            values[name] = _parse_object(name, sent[0]) if "object" in kinds else convert_text(sent[0], kinds)
    return values


def _parse_object(name: str, text: str) -> Any:
    """Parses a parameter that is an object, as `hires` and `reference` are. Raises InvalidParameter."""
    try:
        return parse_json_object(text.encode())
    except Problem:
        raise InvalidParameter(name, "must be an object in JSON") from None


def _read_texts(name: str, value: Any) -> tuple[str, ...]:
    """An option's texts, sent as fields or in JSON: one, or a flat list; "" for one that is left out."""
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, list | dict) for each in values):
        raise InvalidParameter(name, "must be a text, or a list of texts")
    found = tuple(each if isinstance(each, str) else "" if each is None else json.dumps(each) for each in values)
    for text in found:
        try:
            check_name(text)
        except ValueError as error:
            raise InvalidParameter(name, str(error)) from None
    return found


def _read_text(part: FormPart, files: Collection[str], options: Collection[str], fields: _FormFields) -> str:
    """A field's text; clients may send even a JSON part as a file."""
    # Of a field that came in parts, as `hires[scale]` is one, what stands before the brackets.
    field = part.name.partition("[")[0]
    name = part.name if part.name in options else field
    known = part.name in options or field in fields.types
    if part.filename is not None and not part.is_empty and known:
        raise InvalidParameter(name, "must be a plain field, not a file")
    if part.filename is not None and not known and part.name != PARAMS:
        # The name is the caller's own, and not repeated.
        message = f"a file has a name that is not known here; files are {', '.join(files)}"
        raise Problem(422, "unknown_file", message, faults=(Fault(pointer_to(None), "unknown_file", message),))
    if len(part.data) > MAX_TEXT_BYTES:
        message = f"the form cannot be read: a field may have at most {MAX_TEXT_BYTES} bytes"
        raise Problem(400, "invalid_form", message)
    if not known and part.name != PARAMS:
        # Its name will be refused, whatever its text's encoding.
        return part.data.decode(errors="replace")
    _check_transfer_encoding(part, name)
    if not part.is_utf8:
        raise InvalidParameter(name, "must be UTF-8, and its charset named so if at all")
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise InvalidParameter(name, "must be UTF-8") from None


def _check_transfer_encoding(part: FormPart, name: str) -> None:
    if not part.is_plain:
        raise InvalidParameter(name, "must be sent as it is, without Content-Transfer-Encoding")


def convert_text(text: str, kinds: Collection[str]) -> Any:
    """Converts a text to one of those JSON types, or leaves it a text for the field's own rules to refuse."""
    if "boolean" in kinds:
        return _FLAGS.get(text.lower(), text)
    if "integer" in kinds and _WHOLE.fullmatch(text):
        return int(text)
    if ("integer" in kinds or "number" in kinds) and _NUMBER.fullmatch(text):
        return float(text)
    return text

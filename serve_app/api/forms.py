"""Reading multipart forms strictly: which parts may be there, and what their text means."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message as AsgiMessage

from deployments.engine.errors import InvalidParameter
from deployments.engine.params import GenerationParams
from serve_app.api.body import check_content_headers, encodable, parse_json_object, read_body
from serve_app.api.errors import Fault, Problem, pointer_to
from serve_app.api.validation import read_params

MAX_UPLOAD_BYTES: Final = 32 * 1024 * 1024
MAX_FILES: Final = 8
MAX_FIELDS: Final = 64
MAX_TEXT_BYTES: Final = 256 * 1024

PARAMS: Final = "params"
"""The part that may hold all parameters at once, as a JSON object."""

# Each character can match in one way only, or a long text could keep the process busy for minutes.
_WHOLE = re.compile(r"-?\d{1,30}", re.ASCII)
_NUMBER = re.compile(r"-?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,3})?", re.ASCII)
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}


def _kinds(schema: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(part.get("type", "") for part in schema.get("anyOf", [schema]))


_KINDS: Final = MappingProxyType(
    {name: _kinds(schema) for name, schema in GenerationParams.model_json_schema()["properties"].items()}
)
"""JSON's types that each parameter takes."""


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of a form by name: `files`, the door's own `options` as texts, and the `parameters`, typed."""

    files: Mapping[str, tuple[bytes, ...]]
    options: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, Any]

    def file(self, name: str) -> bytes | None:
        """The one file of that name. Raises InvalidParameter when there are more."""
        found = self.files.get(name, ())
        if len(found) > 1:
            raise InvalidParameter(name, "must be one file")
        return found[0] if found else None

    def required(self, name: str) -> bytes:
        """As `file`; a form without it is refused."""
        found = self.file(name)
        if found is None:
            raise InvalidParameter(name, "is required, as a file")
        return found

    def option(self, name: str) -> str | None:
        """The one text of that name. Raises InvalidParameter when there are more."""
        found = self.options.get(name, ())
        if len(found) > 1:
            raise InvalidParameter(name, "must be there once")
        return found[0] if found else None

    def truth(self, name: str) -> bool:
        """true or false (1 or 0); false when it is not there."""
        text = (self.option(name) or "false").lower()
        if text not in _TRUTH:
            raise InvalidParameter(name, "must be true or false")
        return _TRUTH[text]

    def params(self, **more: Any) -> GenerationParams:
        """The parameters; `more` are those that the caller has worked out. Raises Problem 422."""
        return read_params({**self.parameters, **more})


async def read_form(request: Request, max_bytes: int, files: Collection[str], options: Collection[str]) -> Form:
    """The request's form. `files` and `options` name the door's own parts; all others are parameters.

    Raises Problem: 400, 408, 413, 415, 422; or InvalidParameter.
    """
    # The parser would decode names and texts with whatever codec the caller names, so that is checked, too.
    check_content_headers(request, "multipart/form-data")
    body = await read_body(request, max_bytes)
    found: dict[str, list[bytes]] = {}
    texts: dict[str, list[str]] = {}
    form = await _parse(request, body)
    try:
        for name, part in form.multi_items():
            if name not in files:
                texts.setdefault(name, []).append(await _text(name, part, files, options))
            elif isinstance(part, UploadFile):
                found.setdefault(name, []).append(await part.read())
            else:
                raise InvalidParameter(name, "must be a file")
    finally:
        await form.close()
    values = _parameters(texts, options)
    chosen = {name: _texts_of(name, values.pop(name)) for name in options if name in values}
    return Form({name: tuple(parts) for name, parts in found.items()}, chosen, values)


def _parameters(texts: Mapping[str, list[str]], options: Collection[str]) -> dict[str, Any]:
    """The values of all fields, those of the `params` part among them; a text that is there often is a list."""
    whole = texts.get(PARAMS, ["{}"])
    if len(whole) > 1:
        raise InvalidParameter(PARAMS, "must be there once")
    values = parse_json_object(whole[0].encode())
    for name, said in texts.items():
        if name in values and (name in options or name in _KINDS):
            raise InvalidParameter(name, "is there twice, as a field and in `params`")
        if name != PARAMS:
            values[name] = _typed(name, said[0]) if len(said) == 1 else said
    return values


def _texts_of(name: str, value: Any) -> tuple[str, ...]:
    """An option's texts, whether it came as fields or as JSON: one, or a flat list of them."""
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, list | dict) for each in values):
        raise InvalidParameter(name, "must be a text, or a list of texts")
    found = tuple(each if isinstance(each, str) else json.dumps(each) for each in values)
    if not all(encodable(text) for text in found):
        raise InvalidParameter(name, "must be valid Unicode, without lone surrogates")
    return found


async def _parse(request: Request, body: bytes) -> FormData:
    """The parts of a body that has been read already, and found to be no longer than it may be."""
    if not body.rstrip(b"\r\n").endswith(b"--"):
        # The parser would drop the last part without a word.
        raise Problem(400, "invalid_form", "the form is cut off: its last boundary is missing")

    async def once() -> AsgiMessage:
        return {"type": "http.request", "body": body, "more_body": False}

    whole = Request(request.scope, once)
    try:
        return await whole.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_TEXT_BYTES)
    except (MultiPartException, HTTPException, ValueError, KeyError) as error:
        message = f"the form cannot be read; it may have at most {MAX_FILES} files and {MAX_FIELDS} fields"
        raise Problem(400, "invalid_form", message) from error


async def _text(name: str, part: UploadFile | str, files: Collection[str], options: Collection[str]) -> str:
    """A field's text; clients may send even a JSON part as a file."""
    if isinstance(part, str):
        return part
    if name in options or name in _KINDS:
        raise InvalidParameter(name, "must be a plain field, not a file")
    if name != PARAMS:
        # The name is the caller's own, and not told.
        message = f"a file has a name that is not known here; files are {', '.join(files)}"
        raise Problem(422, "unknown_file", message, faults=(Fault(pointer_to(None), "unknown_file", message),))
    try:
        return (await part.read()).decode()
    except UnicodeDecodeError:
        raise InvalidParameter(name, "must be UTF-8") from None


def _typed(name: str, text: str) -> Any:
    """What a text means as that parameter; left as it is where it is none, for the parameters' own rules to refuse."""
    kinds = _KINDS.get(name, frozenset())
    if not text and "null" in kinds:
        return None
    if "boolean" in kinds:
        return _TRUTH.get(text.lower(), text)
    if "integer" in kinds and _WHOLE.fullmatch(text):
        return int(text)
    if "number" in kinds and _NUMBER.fullmatch(text):
        return float(text)
    return text

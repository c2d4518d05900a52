"""Reads JSON bodies strictly: refuses whatever two parsers could understand differently."""

import asyncio
import codecs
import json
import re
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.requests import Request

from serve_app.api.parsing.header_values import parse_header_value
from serve_app.api.problems import Fault, Problem, pointer_to

MAX_BODY_BYTES = 1024 * 1024

# The time that a body may take: a start, and the rest at half a megabit a second.
READ_SECONDS = 30.0
SLOWEST_BYTES_PER_SECOND = 64 * 1024

# Longer integers are out of every field's range, and take quadratic time to convert.
_MAX_DIGITS = 30
_OUT_OF_RANGE: int = 10**_MAX_DIGITS

# Far more than there are fields. Each unknown one costs a search for what was meant.
MAX_KEYS = 256

# Far more than a thousand requests have. Lists and objects cost garbage collection, which stops everybody; a
# million other values do not fit into a megabyte, but into the larger body that an operator may allow.
MAX_CONTAINERS = 20_000
MAX_VALUES = 1_000_000
_MAX_DEPTH = 500

# Parsed on the event loop: a thread would take longer. Longer bodies are parsed in a thread, beside other requests.
_SHORT_BODY_BYTES = 16 * 1024

_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)

_FOREIGN_BYTE_ORDER_MARKS: Final = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


async def read_json_object(request: Request, max_bytes: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """Reads the body as a JSON object. Raises Problem: 400 malformed, 408 too slow, 413 too large, 415 no JSON, 422."""
    check_content_headers(request, "application/json")
    body = await read_body(request, max_bytes)
    if len(body) > _SHORT_BODY_BYTES:
        return await asyncio.to_thread(parse_json_object, body)
    return parse_json_object(body)


def check_content_headers(request: Request, media_type: str) -> dict[str, str]:
    """Returns the parameters of the content type.

    Raises Problem unless the headers announce a plain body of that type, in UTF-8, without contradiction.
    """
    codings = request.headers.getlist("content-encoding")
    if any(coding.strip().lower() != "identity" for coding in codings):
        raise Problem(415, "unsupported_content_encoding", "send the body without Content-Encoding")
    problem = Problem(415, "unsupported_media_type", f"send the body as Content-Type: {media_type}, in UTF-8")
    try:
        # Sent twice, the two together name no type.
        found, parameters = parse_header_value(",".join(request.headers.getlist("content-type")))
    except ValueError:
        raise problem from None
    if found != media_type or parameters.get("charset", "utf-8").lower() not in ("utf-8", "us-ascii"):
        raise problem
    return parameters


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Reads at most `max_bytes`. Stops reading a longer body, and does not begin one that is announced as longer."""
    announced = content_length_of(request.headers)
    if announced is not None and announced > max_bytes:
        raise _too_large(max_bytes)
    expected = max_bytes if announced is None else announced
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_SECONDS + expected / SLOWEST_BYTES_PER_SECOND):
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise Problem(408, "request_timeout", "the body took too long to arrive", headers=CLOSE) from None
    return b"".join(chunks) if size <= _SHORT_BODY_BYTES else await asyncio.to_thread(b"".join, chunks)


def content_length_of(headers: Headers) -> int | None:
    """The body's length according to its headers; None if they do not say."""
    length = headers.get("content-length", "")
    # Cut off: more digits are too many in any case, and would take long to convert.
    return int(length[:20]) if length.isascii() and length.isdecimal() else None


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Parses the JSON object in `body`, which may begin with UTF-8's byte order mark. Raises Problem."""
    if body.startswith(_FOREIGN_BYTE_ORDER_MARKS):
        raise Problem(400, "invalid_json", "the body is in UTF-16 or UTF-32; send UTF-8")
    body = body.removeprefix(codecs.BOM_UTF8)
    if len(body) > _SHORT_BODY_BYTES:
        _check_value_count(body)
    try:
        parsed = json.loads(
            body.decode(),
            object_pairs_hook=_parse_object,
            parse_constant=_refuse_constant,
            parse_int=_parse_whole_number,
            # A Python function, so that other threads can run between numbers.
            parse_float=_parse_number,
        )
    except UnicodeDecodeError:
        raise Problem(400, "invalid_json", "the body is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        message = f"the body is not valid JSON (line {error.lineno}, column {error.colno})"
        raise Problem(400, "invalid_json", message) from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(parsed, dict):
        raise _body_problem("wrong_type", "the body must be a JSON object", None)
    _check_unicode(parsed)
    return parsed


def _check_value_count(body: bytes) -> None:
    """Raises Problem for too many values. json's parser cannot be interrupted: it would build all of them first."""
    if body.count(b"[") + body.count(b"{") <= MAX_CONTAINERS and body.count(b",") <= MAX_VALUES:
        return
    # They may be inside strings, so count exactly.
    containers = values = depth = 0
    for token in _TOKENS.finditer(body):
        kind = body[token.start()]
        containers += kind in b"[{"
        values += kind == ord(",")
        depth += (kind in b"[{") - (kind in b"]}")
        if depth > _MAX_DEPTH:
            raise _too_deep()
        if containers > MAX_CONTAINERS or values > MAX_VALUES:
            message = f"the body may have at most {MAX_CONTAINERS} lists and objects, and {MAX_VALUES} values"
            raise _body_problem("too_many_values", message, None)


def _too_deep() -> Problem:
    return Problem(400, "nested_too_deep", "the body is nested too deep")


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _body_problem("too_many_fields", f"an object in the body may have at most {MAX_KEYS} fields", None)
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        raise _body_problem("duplicate_key", "an object in the body has the same key twice", None)
    return parsed


def _refuse_constant(_: str) -> float:
    raise Problem(400, "invalid_json", "NaN and Infinity are not JSON")


def _parse_whole_number(digits: str) -> int:
    if len(digits) <= _MAX_DIGITS:
        return int(digits)
    return _OUT_OF_RANGE * (-1 if digits.startswith("-") else 1)


def _parse_number(text: str) -> float:
    return float(text)


def _check_unicode(parsed: dict[str, Any]) -> None:
    for name, value in parsed.items():
        if not is_encodable(name):
            raise _body_problem("invalid_unicode", "a key must be valid Unicode, without lone surrogates", None)
        if isinstance(value, str) and not is_encodable(value):
            raise _body_problem("invalid_unicode", "must be valid Unicode, without lone surrogates", name)


def is_encodable(text: str) -> bool:
    """Whether `text` is valid Unicode, without lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _body_problem(code: str, message: str, field: str | None) -> Problem:
    return Problem(422, code, message, param=field, faults=(Fault(pointer_to(field), code, message),))


# The rest of the body is still coming; to read it, only to keep the connection, would let the attack succeed.
CLOSE = {"Connection": "close"}

# A shorter body is read faster than a new connection is made.
_SHORT_BYTES = 64 * 1024


def close_unread(headers: Headers) -> dict[str, str]:
    """Headers for an answer given before the body was read: they close the connection unless the body is short."""
    announced = content_length_of(headers)
    if announced is None:
        return CLOSE if "transfer-encoding" in headers else {}
    return CLOSE if announced > _SHORT_BYTES else {}


def _too_large(max_bytes: int) -> Problem:
    return Problem(413, "body_too_large", f"the body may have at most {max_bytes} bytes", headers=CLOSE)

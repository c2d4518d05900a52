"""Descriptions of A1111's bodies and answers for the OpenAPI document."""

from typing import Any, Final

from pydantic import BaseModel
from typing_extensions import TypedDict

from serve_app.api.responses import openapi
from serve_app.api.responses.json_schema import inline_schema


class Generated(TypedDict):
    """The images in base64; the fields as they were understood; `info` is a JSON object in a string."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


def body_of(fields: type[BaseModel]) -> dict[str, Any]:
    """Returns the OpenAPI request body of an endpoint that takes `fields`; others in it are ignored."""
    return {"required": True, "content": {"application/json": {"schema": _inline(fields)}}}


def answers() -> dict[int | str, dict[str, Any]]:
    """Returns the OpenAPI answers of the endpoints that make images; Accept is not asked."""
    everywhere = openapi.answers()
    everywhere[200] = {"description": "The images, as JSON."}
    del everywhere[406]
    return everywhere


# What is taken for a value of each type besides.
_ALSO: Final = {
    "integer": ("boolean", "number", "string"),
    "number": ("boolean", "string"),
    "boolean": ("integer", "number", "string"),
}


def _widen(part: Any) -> Any:
    """Returns a part of a schema with the types that are taken for its own, and null, which says nothing."""
    if isinstance(part, list):
        return [_widen(each) for each in part]
    if not isinstance(part, dict):
        return part
    widened = {name: _widen(each) for name, each in part.items()}
    kind = widened.get("type")
    if not isinstance(kind, str) or kind == "null":
        return widened
    return widened | {"type": [kind, *_ALSO.get(kind, ()), "null"]}


def _inline(fields: type[BaseModel]) -> dict[str, Any]:
    widened: dict[str, Any] = _widen(inline_schema(fields))
    return widened | {"type": "object"}


def option_answers() -> dict[int | str, dict[str, Any]]:
    """Returns the OpenAPI answers of the endpoint that changes options."""
    everywhere = openapi.answers()
    return {status: everywhere[status] for status in (400, 404, 408, 413, 415, 422)}


def query_answers() -> dict[int | str, dict[str, Any]]:
    """Returns the OpenAPI answers of an endpoint that has something in its query."""
    return {422: openapi.error_response("The query breaks a rule.")}


def extra_answers() -> dict[int | str, dict[str, Any]]:
    """Returns the OpenAPI answers of the endpoints that work on finished pictures."""
    everywhere = answers()
    everywhere[200] = {"description": "The pictures, as JSON."}
    return {status: answer for status, answer in everywhere.items() if status not in (404, 409, 499, 504)}

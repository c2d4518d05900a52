"""One row of the corpus: what is sent, and the answer that it must get. The marker in what is sent is SECRET."""

import json
from dataclasses import dataclass
from typing import Any, Final

from tests.hostile.wire import Sent, request

DIFFUSION: Final = "/ads/v2/diffusion"
TEXT_DOOR: Final = f"{DIFFUSION}/text-to-image"
IMAGE_DOOR: Final = f"{DIFFUSION}/image-to-image"

Headers = tuple[tuple[str, str | bytes], ...]
JSON: Final[Headers] = (("Content-Type", "application/json"),)

PARSER: Final = "malformed_request"
"""What the HTTP parser could not read."""

BEFORE: Final = frozenset(
    (
        PARSER,
        "ambiguous_length",
        "headers_too_large",
        "invalid_host",
        "invalid_target",
        "invalid_transfer_encoding",
        "target_too_long",
    )
)
"""Codes of what was refused before there was a request: nobody has seen it, and it is no line in the log."""


@dataclass(frozen=True)
class Row:
    """`code` is the problem's, None for a success or what a parser refuses; `param` the field that is to blame."""

    name: str
    sent: Sent
    status: int
    code: str | None = None
    param: str | None = None

    def __str__(self) -> str:
        return self.name


def said(
    name: str,
    body: bytes,
    status: int,
    code: str | None = None,
    param: str | None = None,
    *,
    door: str = TEXT_DOOR,
    headers: Headers = JSON,
) -> Row:
    """A body that is posted to a door."""
    return Row(name, request("POST", door, headers, body), status, code, param)


def asked(name: str, fields: dict[str, Any], status: int = 200, code: str | None = None, param: str = "") -> Row:
    """JSON fields beside a good prompt."""
    body = json.dumps({"prompt": "SECRET cup", "width": 64, "height": 64} | fields).encode()
    return said(name, body, status, code, param or None)


GOOD_BODY: Final = b'{"prompt": "SECRET cup", "width": 64, "height": 64}'


def headed(name: str, headers: Headers, status: int = 200, code: str | None = None) -> Row:
    """Headers beside a good request."""
    return said(name, GOOD_BODY, status, code, headers=(*JSON, *headers))


def got(name: str, target: str, status: int, code: str | None = None, method: str = "GET") -> Row:
    """A request without a body."""
    return Row(name, request(method, target), status, code)

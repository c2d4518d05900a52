"""Answers that may be large, encoded in a thread and sent in chunks, so that other requests are not held up."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# The first as Starlette's JSON answers; the second for streams, whose readers may split lines at more characters.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ASCII_ENCODER: Final = json.JSONEncoder(allow_nan=False)

_CHUNK_BYTES: Final = 256 * 1024


class ChunkedResponse(Response):
    """Hands the body to the server in chunks, each when the one before has been sent."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), _CHUNK_BYTES):
            piece = bytes(self.body[start : start + _CHUNK_BYTES])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await let_others_run()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def json_response(
    make: Callable[[], Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns the result of `make` as a JSON answer. Runs `make` and the encoding in a thread."""
    return ChunkedResponse(await asyncio.to_thread(lambda: encode_json(make())), status, headers)


def encode_json(value: Any, *, ascii_only: bool = False) -> memoryview:
    """Encodes `value` as JSON. Unlike `json.dumps` it can be interrupted between any two values."""
    encoded = bytearray()
    for text in (_ASCII_ENCODER if ascii_only else _ENCODER).iterencode(value):
        encoded += text.encode()
    # Not copied again: nothing could interrupt that.
    return memoryview(encoded)


async def let_others_run() -> None:
    """Lets other tasks of the event loop run. Await it in a loop that may be long."""
    await asyncio.sleep(0)

"""HTTP as bytes: what no well-behaved client can be made to send, and what came back for it."""

import http.client
import json
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

TIMEOUT_S: Final = 5.0

Piece = bytes | float
"""What goes over the wire at once, or how many seconds pass before the next."""


@dataclass(frozen=True)
class Answer:
    """What the server said, and after how many seconds."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def code(self) -> str | None:
        """The error's, where the answer is a problem."""
        return self.problem["error"]["code"] if self.problem else None

    @property
    def problem(self) -> dict[str, Any]:
        if self.headers.get_content_type() != "application/problem+json":
            return {}
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


@dataclass(frozen=True)
class Sent:
    """A request as it goes over the wire."""

    pieces: tuple[Piece, ...] = field(repr=False)
    method: str = "POST"


def request(
    method: str, target: str, headers: Sequence[tuple[str, str | bytes]] = (), body: bytes | None = None
) -> Sent:
    """A request that is HTTP, whatever its parts are; it ends its connection. A body gets its length."""
    lines = [f"{method} {target} HTTP/1.1".encode("latin-1"), b"Host: test", b"Connection: close"]
    lines += [name.encode("latin-1") + b": " + _bytes(value) for name, value in headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return Sent((b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""),), method)


def exchange(port: int, sent: Sent) -> Answer | None:
    """Sends it all, as far as the server takes it. None where it just closes, or has nothing to say to the end."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as wire:
        # A server that has heard enough closes; its answer can be read all the same.
        with suppress(OSError):
            for piece in sent.pieces:
                if isinstance(piece, float):
                    time.sleep(piece)
                else:
                    wire.sendall(piece)
        with suppress(OSError, http.client.HTTPException):
            answer = http.client.HTTPResponse(wire, method=sent.method)
            answer.begin()
            return Answer(answer.status, answer.headers, answer.read(), time.monotonic() - begun)
    return None


def leave(port: int, sent: Sent) -> None:
    """Sends it and is gone, without waiting for an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as wire:
        for piece in sent.pieces:
            assert isinstance(piece, bytes)
            wire.sendall(piece)
        # A reset, not a farewell.
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")

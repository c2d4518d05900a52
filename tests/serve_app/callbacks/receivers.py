"""A real HTTP server that receives callbacks, and behaves as badly as it is told to."""

import asyncio
import contextlib
import datetime
import ssl
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Manner = int | Literal["hang", "close", "cut"] | tuple[int, dict[str, str]]
"""A status, perhaps with headers; or no answer, a closed connection, half an answer."""


@dataclass(frozen=True)
class Received:
    """A request as it came over the wire; `headers` have lower-case names."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers each path in the `manners` that are left for it, one a request, and then with 204."""

    port: int = 0
    received: list[Received] = field(default_factory=list)
    manners: defaultdict[str, deque[Manner]] = field(default_factory=lambda: defaultdict(deque))
    connections: int = 0
    at_a_time: int = 0
    most_at_a_time: int = 0
    scheme: str = "http"

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def behaves(self, path: str, *manners: Manner) -> None:
        self.manners[path].extend(manners)

    def at(self, path: str) -> list[Received]:
        return [each for each in self.received if each.target.partition("?")[0] == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._answer(reader, writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        request, *lines = head.strip().split("\r\n")
        method, target, _ = request.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.received.append(Received(method, target, headers, body))
        left = self.manners[target.partition("?")[0]]
        manner: Any = left.popleft() if left else 204
        self.at_a_time += 1
        self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        try:
            await self._behave(manner, reader, writer)
        finally:
            self.at_a_time -= 1

    async def _behave(self, manner: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if manner == "hang":
            # Until the other side has had enough.
            await reader.read()
        elif manner == "cut":
            writer.write(b"HTTP/1.1 2")
        elif manner != "close":
            status, more = manner if isinstance(manner, tuple) else (manner, {})
            fields = "".join(f"{name}: {value}\r\n" for name, value in more.items())
            writer.write(f"HTTP/1.1 {status} Said\r\nContent-Length: 2\r\n{fields}\r\nok".encode())
            await writer.drain()


@contextlib.asynccontextmanager
async def receiver(context: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver on a port of its own; with `context`, behind TLS."""
    receiver = Receiver(scheme="http" if context is None else "https")
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=context)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()


def certified(folder: Path, host: str) -> tuple[ssl.SSLContext, Path]:
    """What a server for `host` needs for TLS, and the file of the authority, itself, that its clients have to trust."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "tls.pem").write_bytes(key.private_bytes(*form) + certificate)
    (folder / "authority.pem").write_bytes(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem")
    return context, folder / "authority.pem"

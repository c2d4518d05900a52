"""Sends one HTTP request to a caller's address, within a time limit, and follows no redirect."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import httpcore
import httpx

from serve_app.callbacks.addresses import AddressRefused, AddressRules, CheckedNetwork
from serve_app.observability.versions import darkroom_version
from serve_app.retry_after import read_retry_after

# What servers that ask for more patience are believed.
LONGEST_ASKED_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Reply:
    """The status of an answer, and after how many seconds its server wants to be asked again, if it says so."""

    status: int
    retry_after_s: float | None = None


class SendError(Exception):
    """There was no answer. `code` says why, without any of the address; `final`: nor will there be one later."""

    def __init__(self, code: str, *, final: bool = False) -> None:
        super().__init__(code)
        self.code, self.final = code, final


class Sender:
    """Opens a new connection for each request, `most` at a time. Used on one event loop.

    Certificates are checked against `SSL_CERT_FILE` or `SSL_CERT_DIR` where one is set, else certifi's list.
    """

    def __init__(self, rules: AddressRules, most: int) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=most,
            max_keepalive_connections=0,
            network_backend=CheckedNetwork(rules),
        )
        self._agent = f"darkroom/{darkroom_version()}"

    async def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Reply:
        """Sends `body`, and returns what the answer's head says; its body is not read. Raises SendError."""
        fields = {"User-Agent": self._agent, **headers, "Content-Length": str(len(body))}
        limits = {"timeout": {"connect": timeout_s}}
        try:
            async with asyncio.timeout(timeout_s), AsyncExitStack() as stack:
                answer = await stack.enter_async_context(
                    self._pool.stream(method, url, headers=list(fields.items()), content=body, extensions=limits)
                )
                return Reply(answer.status, _retry_after_s(answer.headers))
        except AddressRefused:
            raise SendError("address_not_allowed", final=True) from None
        except (TimeoutError, httpcore.TimeoutException):
            raise SendError("timeout") from None
        except httpcore.ConnectError as error:
            raise SendError("certificate_not_valid" if _is_about_tls(error) else "connection_refused") from None
        except (httpcore.NetworkError, httpcore.ProtocolError):
            raise SendError("connection_lost") from None
        except (OSError, UnicodeError):
            raise SendError("unknown_host") from None

    async def close(self) -> None:
        """Closes its connections."""
        await self._pool.aclose()


def _is_about_tls(error: BaseException) -> bool:
    while (cause := error.__cause__ or error.__context__) is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        error = cause
    return False


def _retry_after_s(headers: list[tuple[bytes, bytes]]) -> float | None:
    text = next((value for name, value in headers if name.lower() == b"retry-after"), b"").decode("latin-1")
    asked = read_retry_after(text)
    return None if asked is None else min(LONGEST_ASKED_S, asked)

"""Checks a request's head: one host, one length, nothing that two servers would read differently.

Runs in the proxy's process, before any deployment is asked; the parser has checked names, values and line ends by then.
"""

import re
from collections.abc import Sequence
from typing import Final

from serve_app.api.problems import Problem

MAX_HEAD_BYTES: Final = 64 * 1024
"""The target and all headers, trailers included."""

MAX_HEADERS: Final = 100
MAX_TARGET_BYTES: Final = 32 * 1024

Headers = Sequence[tuple[bytes, bytes]]

_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)/", re.IGNORECASE)


def check_head(method: bytes, version: str, target: bytes, headers: Headers) -> None:
    """Raises Problem if the head of a request breaks a rule. The names in `headers` are in lower case."""
    host = _check_host(version, headers)
    _check_target(method, target, host)
    _check_length(version, headers)
    if any(value.lower() != b"100-continue" for value in values_of(headers, b"expect")):
        raise Problem(417, "expectation_failed", "Expect may only say 100-continue")


def length_of(headers: Headers) -> int:
    """The body's length, as a checked head announces it."""
    return int((values_of(headers, b"content-length") or [b"0"])[0])


def values_of(headers: Headers, wanted: bytes) -> list[bytes]:
    """All values of one header, without surrounding white space."""
    return [value.strip() for name, value in headers if name == wanted]


def headers_too_large() -> Problem:
    """The answer to a head over the limits."""
    message = f"the target and headers may have at most {MAX_HEAD_BYTES} bytes, and there may be {MAX_HEADERS} headers"
    return Problem(431, "headers_too_large", message)


def target_too_long() -> Problem:
    """The answer to a path and query over the limit."""
    return Problem(414, "target_too_long", f"the path and query may have at most {MAX_TARGET_BYTES} bytes together")


def head_too_slow() -> Problem:
    """The answer to a head that did not arrive in time."""
    return Problem(408, "request_timeout", "the request's headers took too long to arrive")


def malformed_request() -> Problem:
    """The answer to a request that the parser cannot read."""
    return Problem(400, "malformed_request", "this is not well-formed HTTP/1.1")


def _check_host(version: str, headers: Headers) -> bytes | None:
    hosts = values_of(headers, b"host")
    if not hosts and version != "1.1":
        return None
    if len(hosts) != 1:
        raise Problem(400, "invalid_host", f"a request has one Host header, and this one has {len(hosts)}")
    if not _HOST.fullmatch(hosts[0]):
        raise Problem(400, "invalid_host", "Host must be a name or an address, and a port where it is not 80")
    return hosts[0]


def _check_target(method: bytes, target: bytes, host: bytes | None) -> None:
    if method == b"CONNECT":
        allowed = {"Allow": "GET, HEAD, POST, DELETE, OPTIONS"}
        raise Problem(405, "method_not_allowed", "this server is no proxy", headers=allowed)
    if b"#" in target:
        raise Problem(400, "invalid_target", "a request's target has no fragment")
    if target.startswith(b"/"):
        return
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        raise Problem(400, "invalid_target", "the target must be a path that begins with a slash")
    # A proxy in front of this server may have looked at either of the two.
    if host is None or absolute[1].lower() != host.lower():
        raise Problem(400, "invalid_target", "the target names another host than Host does")


def _check_length(version: str, headers: Headers) -> None:
    codings, lengths = values_of(headers, b"transfer-encoding"), values_of(headers, b"content-length")
    if codings and (version != "1.1" or [coding.lower() for coding in codings] != [b"chunked"]):
        raise Problem(400, "invalid_transfer_encoding", "Transfer-Encoding may only be chunked, once, in HTTP/1.1")
    if codings and lengths:
        raise Problem(400, "ambiguous_length", "a body has either Content-Length or Transfer-Encoding")
    if len(lengths) > 1:
        raise Problem(400, "ambiguous_length", "a body has one Content-Length")
    if codings and values_of(headers, b"upgrade") and asks_for_upgrade(headers):
        raise Problem(400, "invalid_upgrade", "no other protocol is spoken here: leave out Upgrade, or chunked")


def asks_for_upgrade(headers: Headers) -> bool:
    """Whether the request asks for another protocol on this connection."""
    tokens = b",".join(values_of(headers, b"connection")).lower().split(b",")
    return b"upgrade" in (token.strip() for token in tokens)

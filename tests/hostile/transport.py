"""Rows about the transport: lengths, chunks, encodings, methods, and what two HTTP parsers could read differently."""

import gzip
import zlib
from typing import Final

from serve_app.api.parsing.body import MAX_BODY_BYTES
from tests.hostile.rows import DIFFUSION, GOOD_BODY, IMAGE_DOOR, JSON, PARSER, TEXT_DOOR, Row, got, headed, said
from tests.hostile.server import CRASH
from tests.hostile.wire import Piece, Sent

HEAD: Final = (
    f"POST {TEXT_DOOR} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\n".encode()
)
LENGTH: Final = b"Content-Length: %d\r\n" % len(GOOD_BODY)
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"

TRICKLE: Final[tuple[Piece, ...]] = (b"S", 0.06) * 15


def raw(name: str, *pieces: Piece, status: int, code: str | None = None, method: str = "POST") -> Row:
    """Bytes as they are."""
    return Row(name, Sent(pieces, method), status, code)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def ambiguous(name: str, lines: bytes, body: bytes = GOOD_BODY, code: str = PARSER) -> Row:
    """Headers that two parsers could read differently: to be refused by the first."""
    return raw(name, HEAD + lines + b"\r\n" + body, status=400, code=code)


LENGTHS: Final = (
    raw("a length over the limit", HEAD + b"Content-Length: 1048577\r\n\r\n", status=413, code="body_too_large"),
    raw(
        "a length over the limit that waits to be asked for",
        HEAD + b"Expect: 100-continue\r\nContent-Length: 999999999999\r\n\r\n",
        status=413,
        code="body_too_large",
    ),
    raw("a length of thirty digits", HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", status=400, code=PARSER),
    raw(
        "chunks over the limit",
        HEAD + CHUNKED + b"\r\n",
        *[chunk(b" " * 65_536)] * (MAX_BODY_BYTES // 65_536 + 1),
        status=413,
        code="body_too_large",
    ),
    raw(
        "a hundred thousand chunks of a byte",
        HEAD + CHUNKED + b"\r\n" + chunk(b" ") * 100_000 + chunk(b"[]") + b"0\r\n\r\n",
        status=422,
        code="wrong_type",
    ),
    raw(
        "a body that trickles",
        HEAD + b"Content-Length: 90\r\n\r\n",
        *TRICKLE,
        status=408,
        code="request_timeout",
    ),
    raw("a body that never comes", HEAD + b"Content-Length: 90\r\n\r\n", status=408, code="request_timeout"),
    raw(
        "a good body in chunks",
        HEAD + CHUNKED + b"\r\n" + chunk(GOOD_BODY[:9]) + chunk(GOOD_BODY[9:]) + b"0\r\n\r\n",
        status=200,
    ),
    raw(
        "trailers",
        HEAD + CHUNKED + b"\r\n" + chunk(GOOD_BODY) + b"0\r\nX-Request-Timeout-Seconds: 0\r\n\r\n",
        status=200,
    ),
    raw(
        "HTTP/1.0",
        f"POST {TEXT_DOOR} HTTP/1.0\r\nContent-Type: application/json\r\n".encode() + LENGTH + b"\r\n" + GOOD_BODY,
        status=200,
    ),
    raw(
        "asked to continue",
        HEAD + b"Expect: 100-continue\r\n" + LENGTH + b"\r\n",
        0.1,
        GOOD_BODY,
        status=200,
    ),
)

AMBIGUOUS: Final = (
    ambiguous("length and chunks", LENGTH + CHUNKED, chunk(GOOD_BODY) + b"0\r\n\r\n"),
    ambiguous("chunks and length", CHUNKED + b"Content-Length: 4\r\n", chunk(GOOD_BODY) + b"0\r\n\r\n"),
    ambiguous("two lengths", LENGTH + b"Content-Length: 3\r\n"),
    ambiguous("a list of lengths", b"Content-Length: 3, 3\r\n"),
    ambiguous("a length with a sign", b"Content-Length: +51\r\n"),
    ambiguous("a length below nothing", b"Content-Length: -1\r\n"),
    ambiguous("a length in hexadecimal", b"Content-Length: 0x33\r\n"),
    ambiguous("a length of no digits", b"Content-Length: \r\n"),
    ambiguous("a space before the colon", b"Content-Length : 51\r\n"),
    ambiguous("a folded header", b"X-A: a\r\n b\r\n" + LENGTH),
    ambiguous("a bare line feed", b"X-A: a\nX-B: b\r\n" + LENGTH),
    ambiguous("a bare carriage return", b"X-A: a\rSECRET: b\r\n" + LENGTH),
    ambiguous("a null in a value", b"X-A: a\0SECRET\r\n" + LENGTH),
    ambiguous("a null in a name", b"X\0A: SECRET\r\n" + LENGTH),
    ambiguous("a name of other letters", b"X-\xe9: SECRET\r\n" + LENGTH),
    ambiguous("no name", b": SECRET\r\n" + LENGTH),
    ambiguous("another coding last", b"Transfer-Encoding: chunked, identity\r\n", chunk(GOOD_BODY) + b"0\r\n\r\n"),
    ambiguous(
        "a coding before the last",
        b"Transfer-Encoding: gzip, chunked\r\n",
        chunk(GOOD_BODY) + b"0\r\n\r\n",
        "invalid_transfer_encoding",
    ),
    ambiguous("two hosts", b"Host: SECRET\r\n" + LENGTH, code="invalid_host"),
    ambiguous(
        "a coding that nobody knows",
        b"Transfer-Encoding: xchunked\r\n",
        chunk(GOOD_BODY) + b"0\r\n\r\n",
        "invalid_transfer_encoding",
    ),
    ambiguous("a coding in disguise", b"Transfer-Encoding: \x0bchunked\r\n", chunk(GOOD_BODY) + b"0\r\n\r\n"),
    ambiguous("a chunk of no size", CHUNKED, b"zz\r\nSECRET\r\n0\r\n\r\n"),
    ambiguous("a chunk below nothing", CHUNKED, b"-1\r\nSECRET\r\n0\r\n\r\n"),
    ambiguous("a chunk of seventeen digits", CHUNKED, b"FFFFFFFFFFFFFFFFF\r\nSECRET"),
    ambiguous("a chunk that is longer than it says", CHUNKED, b"3\r\nSECRET\r\n0\r\n\r\n"),
    raw("no host", b"GET /livez HTTP/1.1\r\n\r\n", status=400, code="invalid_host", method="GET"),
    raw("a thousand headers", HEAD + b"X: SECRET\r\n" * 1000 + b"\r\n", status=431, code="headers_too_large"),
    raw("a header of 100 KB", HEAD + b"X: " + b"SECRET" * 17_000, status=431, code="headers_too_large"),
    raw("no HTTP at all", b"\x16\x03\x01SECRET\0\0\r\n\r\n", status=400, code=PARSER),
    raw("HTTP/0.9", b"GET /SECRET\r\n\r\n", status=404, code="not_found", method="GET"),
    raw("HTTP/2 at once", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", status=400, code=PARSER),
    raw("HTTP of another time", b"GET /livez HTTP/3.7\r\nHost: test\r\n\r\n", status=400, code=PARSER, method="GET"),
    raw(
        "a method of small letters", b"get /livez HTTP/1.1\r\nHost: test\r\n\r\n", status=400, code=PARSER, method="GET"
    ),
    raw("a method of our own", b"SECRET /livez HTTP/1.1\r\nHost: test\r\n\r\n", status=400, code=PARSER, method="GET"),
)

CODINGS: Final = (
    headed("gzip", (("Content-Encoding", "gzip"),), 415, "unsupported_content_encoding"),
    said(
        "a gzip bomb",
        gzip.compress(b" " * 50_000_000),
        415,
        "unsupported_content_encoding",
        headers=(*JSON, ("Content-Encoding", "gzip")),
    ),
    said(
        "a deflate bomb that hides behind identity",
        zlib.compress(b" " * 50_000_000),
        415,
        "unsupported_content_encoding",
        headers=(*JSON, ("Content-Encoding", "identity"), ("Content-Encoding", "deflate")),
    ),
    headed("a list of codings", (("Content-Encoding", "identity, br"),), 415, "unsupported_content_encoding"),
    headed("identity", (("Content-Encoding", "Identity"),)),
    said(
        "JSON that calls itself a form",
        GOOD_BODY,
        400,
        "invalid_form",
        headers=(("Content-Type", "multipart/form-data; boundary=x"),),
    ),
    said("no type", GOOD_BODY, 415, "unsupported_media_type", headers=()),
    *(
        said(f"the type {kind}", GOOD_BODY, 415, "unsupported_media_type", headers=(("Content-Type", kind),))
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/json; charset=utf-16",
            "application/json; charset=SECRET",
            "application/json, text/plain",
            "application/SECRET+json",
            "SECRET",
            ";",
        )
    ),
    headed("two types", (("Content-Type", "text/plain"),), 415, "unsupported_media_type"),
    said(
        "a form in the address's way",
        b"init_image=SECRET&prompt=a",
        415,
        "unsupported_media_type",
        door=IMAGE_DOOR,
        headers=(("Content-Type", "application/x-www-form-urlencoded"),),
    ),
)

METHODS: Final = (
    *(got(f"{method} at a door", TEXT_DOOR, 405, "method_not_allowed", method) for method in ("GET", "PUT", "TRACE")),
    *(got(f"{method} at a door", TEXT_DOOR, 405, "method_not_allowed", method) for method in ("DELETE", "PATCH")),
    got("HEAD at a door", TEXT_DOOR, 405, None, "HEAD"),
    got("POST of a list", f"{DIFFUSION}/models", 405, "method_not_allowed", "POST"),
    got("nowhere", "/SECRET", 404, "not_found"),
    got("a way out", f"{DIFFUSION}/../../../etc/passwd", 404, "not_found"),
    got("a way out in disguise", f"{DIFFUSION}/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404, "not_found"),
    got("a null in the path", "/livez%00SECRET", 404, "not_found"),
    got("a line in the path", "/SECRET%0d%0aX-Evil:%201", 404, "not_found"),
    got("what is no text in the path", "/%ff%fe", 404, "not_found"),
    got("another server's address", "http://169.254.169.254/latest/SECRET", 400, "invalid_target"),
    got("two slashes", "//livez", 404, "not_found"),
    got("a slash at the end", "/livez/", 404, "not_found"),
    got("a long path", "/" + "SECRET" * 5_000, 404, "not_found"),
    got("a question that nobody understands", "/livez?SECRET=1&" + "a=1&" * 5_000, 200),
    got("Ray's own words", CRASH, 500, "internal_error"),
    got("Ray's own pages", "/-/routes", 404, "not_found"),
    got("a path that is too long", "/" + "SECRET" * 6_000, 414, "target_too_long"),
)

ROWS: Final = (*LENGTHS, *AMBIGUOUS, *CODINGS, *METHODS)

GONE: Final = (
    Sent((HEAD + b"Content-Length: 90\r\n\r\n",)),
    Sent((HEAD + CHUNKED + b"\r\n5\r\nSECR",)),
    Sent((HEAD + LENGTH + b"\r\n" + GOOD_BODY,)),
    Sent((b"POST / HT",)),
    Sent((b"",)),
)
"""What clients leave behind that are gone at once."""

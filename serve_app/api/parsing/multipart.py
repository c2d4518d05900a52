"""Splits a multipart/form-data body (RFC 7578) into its parts, strictly and in memory: nothing is spooled to disk.

The body is complete and bounded, so its parts lie between its delimiters. Whatever two parsers could read in two ways
is refused with a message that names the fault.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from serve_app.api.parsing.header_values import parse_header_value
from serve_app.api.problems import Problem

MAX_BOUNDARY_CHARACTERS: Final = 256
MAX_HEADER_BYTES: Final = 16 * 1024

# No search holds the interpreter lock for more bytes than this.
_WINDOW: Final = 256 * 1024

_PLAIN: Final = ("7bit", "8bit", "binary")
_UTF8: Final = ("utf-8", "utf8", "us-ascii")


@dataclass(frozen=True, slots=True)
class FormPart:
    """A part: its field's name, its bytes, and the file name that came with it, if any.

    `is_plain`: the bytes are not transfer-encoded, in base64 for example. `is_utf8`: no other charset is named.
    """

    name: str
    data: bytes
    filename: str | None = None
    is_plain: bool = True
    is_utf8: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether it is a field left empty, or a file input without a chosen file."""
        return not self.data and not self.filename


def parse_parts(body: bytes, parameters: dict[str, str], most: int) -> list[FormPart]:
    """Splits `body` into at most `most` parts. `parameters` are those of its Content-Type. Raises Problem 400."""
    boundary = _read_boundary(parameters)
    # Some clients send one more line end after the request's headers.
    begin = 2 if body.startswith(b"\r\n") else 0
    if not body.startswith(b"--" + boundary, begin):
        _refuse("the body does not begin with the boundary that its Content-Type names")
    found: list[FormPart] = []
    for start, end in _find_spans(body, begin, boundary):
        if len(found) == most:
            _refuse(f"it may have at most {most} parts")
        found.append(_parse_part(body, start, end))
    return found


def _read_boundary(parameters: dict[str, str]) -> bytes:
    """Raises Problem for what no browser sends, such as `boundary*`, which only some parsers read."""
    if any(name.startswith("boundary*") for name in parameters):
        _refuse("its Content-Type must name the boundary as `boundary=` and in no other way")
    boundary = parameters.get("boundary", "")
    if not boundary:
        _refuse("its Content-Type names no boundary; let the client's own library write that header")
    if len(boundary) > MAX_BOUNDARY_CHARACTERS or not boundary.isascii() or not boundary.isprintable():
        _refuse(f"the boundary must be printable ASCII, {MAX_BOUNDARY_CHARACTERS} characters at most")
    return boundary.encode()


def _find_spans(body: bytes, begin: int, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Yields each part's start and end, its headers included. Raises Problem."""
    delimiter = b"\r\n--" + boundary
    at = begin + len(delimiter) - 2
    while not body.startswith(b"--", at):
        line_end = _find(body, b"\r\n", at, at + MAX_HEADER_BYTES)
        if line_end < 0 or body[at:line_end].strip(b" \t"):
            _refuse("a boundary is followed by something else on its line, or the form is cut off there")
        start = line_end + 2
        # A part without headers or content may begin with the next delimiter itself.
        end = _find(body, delimiter, line_end, len(body))
        if end < 0:
            _refuse("it is cut off: its last boundary is missing")
        yield start, max(start, end)
        at = end + len(delimiter)
    if body[at + 2 : at + 6].strip(b"\r\n") or len(body) > at + 6:
        _refuse("something follows its last boundary")


def _find(body: bytes, needle: bytes, start: int, end: int) -> int:
    """Searches as `bytes.find` does, but window by window, so that other threads can run in between."""
    while start < end:
        found = body.find(needle, start, min(end, start + _WINDOW + len(needle) - 1))
        if found >= 0:
            return found
        start += _WINDOW
    return -1


def _parse_part(body: bytes, start: int, end: int) -> FormPart:
    if body.startswith(b"\r\n", start):
        _refuse("a part has no Content-Disposition header")
    headers_end = _find(body, b"\r\n\r\n", start, min(end, start + MAX_HEADER_BYTES))
    if headers_end < 0:
        _refuse(f"a part's headers do not end, or are longer than {MAX_HEADER_BYTES} bytes together")
    headers = _parse_headers(body[start:headers_end])
    data = body[headers_end + 4 : end]
    try:
        kind, parameters = parse_header_value(headers.get("content-disposition", ""))
    except ValueError:
        _refuse("a part's Content-Disposition is missing, malformed, or says a thing twice")
    if kind != "form-data" or "name" not in parameters:
        _refuse('every part needs Content-Disposition: form-data; name="..."')
    filename = parameters.get("filename", parameters.get("filename*"))
    is_plain = headers.get("content-transfer-encoding", "binary").lower() in _PLAIN
    return FormPart(parameters["name"], data, filename, is_plain, _is_utf8(headers.get("content-type", "text/plain")))


def _is_utf8(content_type: str) -> bool:
    """Whether a text of that type is UTF-8; true if no charset can be made out."""
    try:
        _, parameters = parse_header_value(content_type)
    except ValueError:
        return "charset" not in content_type.lower()
    return parameters.get("charset", "utf-8").lower() in _UTF8


def _parse_headers(block: bytes) -> dict[str, str]:
    """The headers by their names in lower case. Raises Problem."""
    found: dict[str, str] = {}
    for line in block.decode(errors="replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip() or "\n" in line or "\r" in line:
            _refuse("a part has a line among its headers that is none")
        if name.lower() in found:
            _refuse("a part has the same header twice")
        found[name.lower()] = value.strip()
    return found


def _refuse(what: str) -> NoReturn:
    raise Problem(400, "invalid_form", f"the form cannot be read: {what}")

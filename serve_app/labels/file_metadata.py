"""Puts texts into PNG, JPEG and WebP files, and finds them there; the picture itself is neither decoded nor changed."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from PIL import Image

MAX_TEXT_BYTES: Final = 256 * 1024
"""Of a text in a file that is read: longer ones are not looked at."""

MAX_JPEG_TEXT_BYTES: Final = 60_000
"""Of the parameters in a JPEG file, in UTF-16: a segment holds no more."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_END: Final = 33
_KEY: Final = b"parameters"
_XMP_KEY: Final = b"XML:com.adobe.xmp"
_JPEG: Final = b"\xff\xd8"
_APP0, _APP1, _START_OF_SCAN = 0xE0, 0xE1, 0xDA
_EXIF: Final = b"Exif\0\0"
_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
_UNICODE: Final = b"UNICODE\0"
_COMMENT_PREFIX: Final = len(_UNICODE)
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_WEBP_EXIF, _WEBP_XMP, _WEBP_ALPHA = 0x08, 0x04, 0x10

# A file that is read has passed the check of how many small chunks there are; these are all of them, with large ones.
_MAX_PIECES: Final = 4000

Piece = tuple[bytes, bytes]
"""The name of a chunk or a segment, and what it holds."""


@dataclass(frozen=True, slots=True)
class FileTexts:
    """What a file says of itself: how it was made, as A1111 writes it, and an XMP packet."""

    parameters: str | None = None
    xmp: bytes | None = None


def is_jpeg(file: bytes) -> bool:
    """Whether a file is a JPEG, whose texts are the shortest."""
    return file.startswith(_JPEG)


def add_texts(file: bytes, texts: FileTexts) -> bytes:
    """Returns a PNG, JPEG or WebP file that was made here, with `texts` in it."""
    if file.startswith(_PNG):
        return b"".join((file[:_PNG_HEADER_END], *_png_texts(texts), file[_PNG_HEADER_END:]))
    if file.startswith(_JPEG):
        at = len(_JPEG)
        if file[at + 1] == _APP0:
            at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
        return b"".join((file[:at], *_jpeg_texts(texts), file[at:]))
    return _add_to_webp(file, texts)


def read_texts(file: bytes) -> FileTexts:
    """Returns the texts in a file, which may be anybody's. What cannot be read counts as not there."""
    parameters, xmp = None, None
    for name, data in islice(_pieces(file), _MAX_PIECES):
        if len(data) > MAX_TEXT_BYTES:
            continue
        if name == b"parameters":
            parameters = parameters or _decode_text(data)
        elif name == b"exif":
            parameters = parameters or _read_comment(data)
        else:
            xmp = xmp or data
    return FileTexts(parameters, xmp)


def _pieces(file: bytes) -> Iterator[Piece]:
    """Yields what may hold a text, as `parameters`, `exif` or `xmp`."""
    if file.startswith(_PNG):
        return _png_pieces(file)
    if file.startswith(_JPEG):
        return _jpeg_pieces(file)
    return _webp_pieces(file)


def _png_texts(texts: FileTexts) -> Iterator[bytes]:
    if texts.parameters is not None:
        try:
            yield _png_chunk(b"tEXt", _KEY + b"\0" + texts.parameters.encode("latin-1"))
        except UnicodeEncodeError:
            yield _png_chunk(b"iTXt", _KEY + b"\0\0\0\0\0" + texts.parameters.encode())
    if texts.xmp is not None:
        yield _png_chunk(b"iTXt", _XMP_KEY + b"\0\0\0\0\0" + texts.xmp)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png_pieces(file: bytes) -> Iterator[Piece]:
    at = len(_PNG)
    while at + 8 <= len(file):
        length, name = int.from_bytes(file[at : at + 4], "big"), file[at + 4 : at + 8]
        if name in (b"tEXt", b"iTXt") and length <= MAX_TEXT_BYTES:
            key, _, rest = file[at + 8 : at + 8 + length].partition(b"\0")
            text = rest if name == b"tEXt" else _international_text(rest)
            if text is not None and key in (_KEY, _XMP_KEY):
                yield b"parameters" if key == _KEY else b"xmp", text
        elif name == b"eXIf" and length <= MAX_TEXT_BYTES:
            yield b"exif", file[at + 8 : at + 8 + length]
        at += 12 + length


def _international_text(rest: bytes) -> bytes | None:
    """The text behind iTXt's flags, language and translated key; None for a compressed one, which nobody needs here."""
    if rest[:1] != b"\0":
        return None
    parts = rest[2:].split(b"\0", 2)
    return parts[2] if len(parts) > 2 else None


def _jpeg_texts(texts: FileTexts) -> Iterator[bytes]:
    for prefix, data in ((_EXIF, _exif_of(texts)), (_XMP, texts.xmp)):
        if data is not None:
            yield struct.pack(">BBH", 0xFF, _APP1, 2 + len(prefix) + len(data)) + prefix + data


def _jpeg_pieces(file: bytes) -> Iterator[Piece]:
    at = len(_JPEG)
    while at + 4 <= len(file) and file[at] == 0xFF and file[at + 1] != _START_OF_SCAN:
        length = int.from_bytes(file[at + 2 : at + 4], "big")
        data = file[at + 4 : at + 2 + length]
        if file[at + 1] == _APP1 and data.startswith(_EXIF):
            yield b"exif", data[len(_EXIF) :]
        elif file[at + 1] == _APP1 and data.startswith(_XMP):
            yield b"xmp", data[len(_XMP) :]
        at += 2 + max(length, 2)


def _add_to_webp(file: bytes, texts: FileTexts) -> bytes:
    """Adds the chunks, and the one that must come first where there are any but the picture's own."""
    with Image.open(io.BytesIO(file), formats=["WEBP"]) as picture:
        width, height = picture.size
        has_alpha = picture.mode == "RGBA"
    exif = _exif_of(texts)
    flags = _WEBP_ALPHA * has_alpha | _WEBP_EXIF * (exif is not None) | _WEBP_XMP * (texts.xmp is not None)
    extended = struct.pack("<B3x", flags) + _three_bytes(width - 1) + _three_bytes(height - 1)
    body = file[12:]
    if body.startswith(b"VP8X"):
        body = body[18:]
    chunks = [_riff_chunk(b"VP8X", extended), body]
    chunks += [_riff_chunk(name, data) for name, data in ((b"EXIF", exif), (b"XMP ", texts.xmp)) if data is not None]
    whole = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(whole)) + whole


def _webp_pieces(file: bytes) -> Iterator[Piece]:
    at = 12
    while at + 8 <= len(file):
        name, length = file[at : at + 4], int.from_bytes(file[at + 4 : at + 8], "little")
        if name in (b"EXIF", b"XMP ") and length <= MAX_TEXT_BYTES:
            data = file[at + 8 : at + 8 + length]
            yield (b"exif", data.removeprefix(_EXIF)) if name == b"EXIF" else (b"xmp", data)
        at += 8 + length + length % 2


def _riff_chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _three_bytes(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _exif_of(texts: FileTexts) -> bytes | None:
    """An EXIF block with nothing but a comment, in the byte order and encoding that A1111's own library writes."""
    if texts.parameters is None:
        return None
    comment = _UNICODE + texts.parameters.encode("utf-16-be")
    pointer = struct.pack(">HHHIII", 1, _EXIF_IFD, 4, 1, 26, 0)
    entry = struct.pack(">HHHIII", 1, _USER_COMMENT, 7, len(comment), 44, 0)
    return b"MM\0*" + struct.pack(">I", 8) + pointer + entry + comment


def _read_comment(exif: bytes) -> str | None:
    """The comment of an EXIF block, in whichever of its encodings."""
    try:
        block = Image.Exif()
        block.load(_EXIF + exif)
        comment = block.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except Exception:  # whatever a broken block makes Pillow's parser raise
        return None
    if not isinstance(comment, bytes) or len(comment) <= _COMMENT_PREFIX:
        return None
    encoding = "utf-16-be" if comment.startswith(_UNICODE) else "utf-8"
    return clean_text(comment[_COMMENT_PREFIX:].decode(encoding, errors="replace"))


def _decode_text(data: bytes) -> str:
    """Decodes UTF-8, or else Latin-1, whichever of a PNG's kinds of text it was in: many programs mix them up."""
    try:
        return clean_text(data.decode())
    except UnicodeDecodeError:
        return clean_text(data.decode("latin-1"))


def clean_text(text: str) -> str:
    """Returns `text` without what could not stand in a JSON answer, or steers terminals."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "", text)

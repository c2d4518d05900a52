"""Counts and strips the chunks of image files: PNG's and WebP's chunks, JPEG's segments.

Pillow walks through them in Python, a few microseconds each, and a file may consist of millions of empty ones.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from PIL.JpegImagePlugin import MARKER

MAX_SMALL_PIECES: Final = 1000
SMALL: Final = 1024
"""Bytes; larger chunks need no counting, because the file's length bounds their number."""

_METADATA: Final = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_XMP: Final = b"XML:com.adobe.xmp\0\0"
_MAX_XMP: Final = 64 * 1024

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_START_OF_SCAN: Final = 0xFFDA


def has_too_many_chunks(data: bytes) -> bool:
    """Returns True if the file has more small chunks than a real image would. Takes milliseconds, whatever the file."""
    small = (size for size in _sizes(data) if size < SMALL)
    return next(islice(small, MAX_SMALL_PIECES, None), None) is not None


def strip_metadata(data: bytes) -> bytes:
    """Returns a PNG without its texts and colour profile, which may be of any size and which nothing here reads.

    The orientation, in EXIF or a small XMP text, stays, and is moved before the pixels so that their reader sees it.
    Other formats are returned as they are.
    """
    if not data.startswith(_PNG):
        return data
    kept: list[slice] = []
    orientation: list[slice] = []
    behind_pixels = changed = False
    for name, piece in _named_chunks(data):
        text = data[piece.start + 8 : piece.start + 8 + len(_XMP)]
        if name in _METADATA and not (text == _XMP and piece.stop - piece.start < _MAX_XMP):
            changed = True
        elif name in (b"eXIf", b"iTXt"):
            changed = changed or behind_pixels
            orientation.append(piece)
        else:
            behind_pixels = behind_pixels or name == b"IDAT"
            kept.append(piece)
    if not changed:
        return data
    return b"".join((_PNG, *(data[piece] for piece in (*kept[:1], *orientation, *kept[1:]))))


def _named_chunks(data: bytes) -> Iterator[tuple[bytes, slice]]:
    """Yields every chunk's name and place; the last one of a truncated file ends where the file does."""
    at = len(_PNG)
    for size in _png_chunks(data):
        yield data[at + 4 : at + 8], slice(at, min(at + size, len(data)))
        at += size


def _sizes(data: bytes) -> Iterator[int]:
    """Yields the size of every chunk that Pillow would walk through; none for a format that is refused anyway."""
    if data.startswith(_PNG):
        return _png_chunks(data)
    if data.startswith(_JPEG):
        return _jpeg_segments(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_chunks(data)
    return iter(())


def _png_chunks(data: bytes) -> Iterator[int]:
    """Yields the sizes of PNG's chunks: a length, a name, as many bytes as the length says, and a checksum."""
    at = len(_PNG)
    while at < len(data):
        size = 12 + int.from_bytes(data[at : at + 4], "big")
        yield size
        # What follows is not part of the image, and nothing reads it.
        if data.startswith(b"IEND", at + 4):
            return
        at += size


def _webp_chunks(data: bytes) -> Iterator[int]:
    """Yields the sizes of WebP's chunks: a name, a length, as many bytes, padded to an even number."""
    at = 12
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        size = 8 + length + length % 2
        yield size
        at += size


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Yields the sizes of segments up to the start of the scan.

    Each byte that Pillow skips, junk or padding, is one.
    """
    at = 2
    while at < len(data):
        marker = int.from_bytes(data[at : at + 2], "big")
        size = 1
        if marker == _START_OF_SCAN:
            return
        if marker in MARKER:
            # Some markers stand alone, and Pillow's own table knows which.
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            size = 2 if MARKER[marker][2] is None else 2 + max(length, 2)
        yield size
        at += size

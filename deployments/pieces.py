"""The pieces that picture files are made of: PNG's chunks, JPEG's segments, WebP's chunks.

Pillow walks through them in Python, a few microseconds each, and a file may consist of millions of empty ones.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from PIL.JpegImagePlugin import MARKER

MAX_SMALL_PIECES: Final = 1000
SMALL: Final = 1024
"""Bytes; larger pieces need no counting, because the file's length bounds their number."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_START_OF_SCAN: Final = 0xFFDA


def scattered(data: bytes) -> bool:
    """Whether the file has more small pieces than a real picture would. Takes milliseconds, whatever the file."""
    small = (size for size in _sizes(data) if size < SMALL)
    return next(islice(small, MAX_SMALL_PIECES, None), None) is not None


def _sizes(data: bytes) -> Iterator[int]:
    """The size of every piece that Pillow would walk through; none for a format that is not taken anyway."""
    if data.startswith(_PNG):
        return _png_chunks(data)
    if data.startswith(_JPEG):
        return _jpeg_segments(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_chunks(data)
    return iter(())


def _png_chunks(data: bytes) -> Iterator[int]:
    """A chunk is its length, a name, what the length counts, and a checksum."""
    at = len(_PNG)
    while at < len(data):
        size = 12 + int.from_bytes(data[at : at + 4], "big")
        yield size
        at += size


def _webp_chunks(data: bytes) -> Iterator[int]:
    """A chunk is a name, its length, and what that counts, filled up to an even number."""
    at = 12
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        size = 8 + length + length % 2
        yield size
        at += size


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Up to the start of the scan. What Pillow skips byte by byte, junk and padding, is a piece each."""
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

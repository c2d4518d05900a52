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

_NOT_PIXELS: Final = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_XMP: Final = b"XML:com.adobe.xmp\0\0"
_MAX_XMP: Final = 64 * 1024

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_START_OF_SCAN: Final = 0xFFDA


def has_too_many_chunks(data: bytes) -> bool:
    """Whether the file has more small pieces than a real picture would. Takes milliseconds, whatever the file."""
    small = (size for size in _sizes(data) if size < SMALL)
    return next(islice(small, MAX_SMALL_PIECES, None), None) is not None


def strip_metadata(data: bytes) -> bytes:
    """A PNG without its texts and colour profile, which may be of any size and which nobody here reads.

    What says which way is up, EXIF or a small XMP text, stays, and comes before the pixels so that their reader knows.
    All that is no PNG stays as it is.
    """
    if not data.startswith(_PNG):
        return data
    kept: list[slice] = []
    turns: list[slice] = []
    behind_pixels = changed = False
    for name, piece in _named_chunks(data):
        text = data[piece.start + 8 : piece.start + 8 + len(_XMP)]
        if name in _NOT_PIXELS and not (text == _XMP and piece.stop - piece.start < _MAX_XMP):
            changed = True
        elif name in (b"eXIf", b"iTXt"):
            changed = changed or behind_pixels
            turns.append(piece)
        else:
            behind_pixels = behind_pixels or name == b"IDAT"
            kept.append(piece)
    if not changed:
        return data
    return b"".join((_PNG, *(data[piece] for piece in (*kept[:1], *turns, *kept[1:]))))


def _named_chunks(data: bytes) -> Iterator[tuple[bytes, slice]]:
    """Every chunk's name and place; the last of a file that is cut off ends where the file does."""
    at = len(_PNG)
    for size in _png_chunks(data):
        yield data[at + 4 : at + 8], slice(at, min(at + size, len(data)))
        at += size


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
        # What comes behind is no part of the picture, and nobody reads it.
        if data.startswith(b"IEND", at + 4):
            return
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

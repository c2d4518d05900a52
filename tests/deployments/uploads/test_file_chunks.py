"""Files of too many chunks are detected without walking through them; real ones pass."""

import io
import struct
import time
import zlib
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from deployments.engine.protocol.errors import InvalidParameter
from deployments.uploads.file_chunks import has_too_many_chunks
from deployments.uploads.image_files import decode, read_header


def file_of(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((1500, 1000), 90).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def webp_of(chunks: bytes) -> bytes:
    body = b"WEBP" + chunks
    return b"RIFF" + struct.pack("<I", len(body)) + body


PNG, JPEG, WEBP = file_of("PNG"), file_of("JPEG", progressive=True, quality=95), file_of("WEBP")
HOSTILE = {
    "png, chunks ahead": PNG[:33] + png_chunk(b"prVt") * 200_000 + PNG[33:],
    "png, chunks behind": PNG[:-12] + png_chunk(b"prVt") * 200_000 + PNG[-12:],
    "png, pixels in pieces": PNG[:33] + png_chunk(b"IDAT") * 200_000 + PNG[33:],
    "png, one byte of text each": PNG[:33] + png_chunk(b"tEXt", b"a\0b") * 50_000 + PNG[33:],
    "jpeg, segments": JPEG[:2] + b"\xff\xe5\0\2" * 200_000 + JPEG[2:],
    "jpeg, markers alone": JPEG[:2] + b"\xff\xd0" * 400_000 + JPEG[2:],
    "jpeg, extensions alone": JPEG[:2] + b"\xff\xc8\xff\xff" * 400_000 + JPEG[2:],
    "jpeg, padding": JPEG[:2] + b"\xff" * 1_000_000 + JPEG[2:],
    "jpeg, junk": JPEG[:2] + b"\xff\0" + b"\0" * 1_000_000 + JPEG[2:],
    "jpeg, lengths of nothing": JPEG[:2] + b"\xff\xe5\0\0" * 200_000 + JPEG[2:],
    "webp": webp_of(WEBP[12:] + b"JUNK\0\0\0\0" * 400_000),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_file_of_countless_pieces_is_refused_in_no_time(data: bytes) -> None:
    for read in (read_header, decode):
        started = time.thread_time()
        with pytest.raises(InvalidParameter, match="too many") as refused:
            read(data, "mask")
        assert refused.value.field == "mask"
        assert time.thread_time() - started < 0.1


def test_what_cameras_and_editors_write_is_not_suspected() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    texts = PngImagePlugin.PngInfo()
    for i in range(300):
        texts.add_text(f"key {i}", "value")
    real = (PNG, JPEG, WEBP, file_of("PNG", pnginfo=texts), file_of("JPEG", exif=exif, icc_profile=b"x" * 500_000))
    for data in real:
        assert not has_too_many_chunks(data)
        assert read_header(data, "image").width == 1500


def test_eight_kilobytes_of_pixels_a_chunk_are_common() -> None:
    assert not has_too_many_chunks(PNG[:33] + png_chunk(b"IDAT", b"x" * 8192) * 4000 + png_chunk(b"IEND"))


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a"])
def test_a_stump_has_no_pieces(data: bytes) -> None:
    assert not has_too_many_chunks(data)

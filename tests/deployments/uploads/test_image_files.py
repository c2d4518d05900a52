"""Image files: what decoding gives, and what is refused before it is decoded."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.engine.conditioning.resizing import resize
from deployments.engine.protocol.errors import InvalidParameter
from deployments.uploads.image_files import MAX_PIXELS, decode, read_header, to_rgb


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 64, height: int = 48) -> Image.Image:
    across = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3)) * [1, 0.5, 0.25]
    return Image.fromarray(across.astype(np.uint8))


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes that say they are a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def turn(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(gradient(), "JPEG", exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_come_in(kind: str) -> None:
    data = file_of(gradient(), kind)
    header = read_header(data, "image")
    assert (header.format, header.width, header.height) == (kind, 64, 48)
    picture = decode(data, "image")
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(gradient())).mean() < 4


@pytest.mark.parametrize(("orientation", "size"), [(1, (64, 48)), (3, (64, 48)), (6, (48, 64)), (8, (48, 64))])
def test_a_phones_rotation_is_applied(orientation: int, size: tuple[int, int]) -> None:
    header = read_header(turn(orientation), "image")
    assert (header.width, header.height) == decode(turn(orientation), "image").size == size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    image = (
        Image.fromarray((np.ones((20, 20)) * 0x8080).astype(deep[mode]))
        if mode in deep
        else gradient(20, 20).convert("L").convert("RGB").convert(mode)
    )
    assert image.mode == mode
    assert (to_rgb(image).mode, to_rgb(image).size) == ("RGB", (20, 20))


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    deep = Image.fromarray(np.full((20, 20), 0x8080, dtype=np.uint16))
    assert (np.asarray(decode(file_of(deep), "image")) == 128).all()


def test_what_is_transparent_becomes_white() -> None:
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (np.asarray(decode(file_of(picture), "image")) == 255).all()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", id="eps"),
        pytest.param(file_of(gradient(), "GIF"), id="gif"),
        pytest.param(file_of(gradient(), "TIFF"), id="tiff"),
        pytest.param(file_of(gradient(1, 1)), id="1 x 1"),
        pytest.param(png_claiming(9000, 9000), id="9000 x 9000 in a few bytes"),
        pytest.param(png_claiming(60_000, 60_000), id="a bomb"),
        pytest.param(png_claiming(60_000, 20), id="a ribbon"),
        pytest.param(
            file_of(gradient(), "WEBP", save_all=True, append_images=[gradient().rotate(180)]), id="an animation"
        ),
        pytest.param(file_of(gradient(), save_all=True, append_images=[gradient().rotate(180)]), id="an animated png"),
    ],
)
def test_what_is_no_single_picture_of_a_sane_size_is_refused_by_its_header(data: bytes) -> None:
    with pytest.raises(InvalidParameter) as refused:
        read_header(data, "mask")
    assert refused.value.field == "mask"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_is_cut_off_is_refused(kind: str) -> None:
    data = file_of(Image.effect_noise((200, 200), 90).convert("RGB"), kind)
    with pytest.raises(InvalidParameter, match=r"broken|must be"):
        decode(data[: len(data) // 2], "image")


def test_the_largest_picture_is_the_largest_side_squared() -> None:
    assert read_header(png_claiming(4096, 4096), "image").width ** 2 == MAX_PIXELS


@pytest.mark.parametrize("fit", ["cover", "pad", "stretch"])
@pytest.mark.parametrize("size", [(64, 64), (32, 128), (129, 31)])
def test_every_fit_gives_the_size_asked_for(fit: Any, size: tuple[int, int]) -> None:
    assert resize(gradient(), *size, fit).size == size


def test_cover_crops_and_pad_keeps_and_fit_stays_within() -> None:
    marked = Image.new("RGB", (90, 30), "white")
    marked.paste("red", (0, 0, 10, 30))
    red = (255, 0, 0)
    assert resize(marked, 30, 30, "cover").getpixel((0, 15)) == (255, 255, 255)
    assert resize(marked, 90, 90, "pad").getpixel((2, 45)) == red
    assert resize(marked, 90, 90, "pad").getpixel((2, 2)) == red
    assert resize(marked, 45, 90, "fit").size == (45, 15)


@pytest.mark.parametrize("exif", [b"garbage!!garbage", b"", b"II"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_broken_exif_does_not_cost_the_picture(kind: str, exif: bytes) -> None:
    data = file_of(gradient(), kind, exif=exif)
    assert read_header(data, "image").width == 64
    assert decode(data, "image").size == (64, 48)


@pytest.mark.parametrize("size", [(8192, 16), (16, 8192)])
@pytest.mark.parametrize("fit", ["cover", "pad", "stretch"])
def test_a_ribbon_fits_in_every_way(fit: Any, size: tuple[int, int]) -> None:
    assert resize(Image.new("RGB", size), 64, 64, fit).size == (64, 64)


def add_chunks(*chunks: tuple[bytes, bytes], behind: bool = False) -> bytes:
    """A PNG with those chunks before its pixels, or behind them."""
    written = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    data = file_of(gradient())
    at = len(data) - 12 if behind else 33
    return data[:at] + written + data[at:]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"workflow\0" + b"x" * 5_000_000),
        (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(5_000_000))),
        (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(5_000_000))),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 5_000_000),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(5_000_000))),
        (b"zTXt", b"workflow\0\0nothing that was ever packed"),
    ],
    ids=lambda chunk: chunk[0].decode(),
)
def test_texts_and_profiles_of_any_size_do_not_cost_the_picture(chunk: tuple[bytes, bytes], behind: bool) -> None:
    data = add_chunks(chunk, chunk, behind=behind)
    assert read_header(data, "image").width == 64
    assert (np.asarray(decode(data, "image")) == np.asarray(gradient())).all()


@pytest.mark.parametrize("behind", [False, True])
def test_exif_turns_a_png_wherever_it_stands(behind: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = add_chunks((b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), behind=behind)
    header = read_header(data, "image")
    assert (header.width, header.height) == decode(data, "image").size == (48, 64)

"""A mask with transparency means its strokes, or is refused until its caller says what it means; a hint is on black."""

import io
import struct
import zlib
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deployments.annotators.catalogue import Annotators
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import MaskAlpha, Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.settings import ControlSettings
from deployments.uploads.image_files import decode, decode_layer
from deployments.uploads.intake import decode_uploads
from deployments.uploads.transparency import hint_of, mask_of
from serve_app.generation.result import to_png
from serve_app.image_processor import ImageProcessor
from tests.deployments.uploads.test_image_files import file_of, gradient

SIDE: Final = 64
STROKE: Final = np.zeros((SIDE, SIDE), bool)
STROKE[16:48, 8:40] = True
CLEAR: Final = (0, 0, 0, 0)


def draw(stroke: tuple[int, ...], ground: tuple[int, ...] = CLEAR) -> Image.Image:
    image = Image.new("RGBA", (SIDE, SIDE), ground)
    ImageDraw.Draw(image).rectangle((8, 16, 39, 47), fill=stroke)
    return image


def paint(data: bytes, meaning: MaskAlpha | None = None) -> NDArray[np.bool_]:
    return np.asarray(np.asarray(mask_of(decode_layer(data, "mask"), meaning)) >= 128, dtype=np.bool_)


def png(kind: int, depth: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of SIDE x SIDE pixels in that colour type and depth."""
    line = len(rows) // SIDE
    raw = b"".join(b"\0" + rows[line * i : line * (i + 1)] for i in range(SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, kind, 0, 0, 0)
    every = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    pieces = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in every
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def pack(values: NDArray[np.int64], depth: int) -> bytes:
    """Lines of samples of that many bits."""
    if depth == 16:
        return values.astype(">u2").tobytes()
    bits = ((values[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
    return np.packbits(bits.reshape(SIDE, -1), axis=1).tobytes()


def two(stroke: int, ground: int) -> NDArray[np.int64]:
    return np.where(STROKE, stroke, ground)


WHITE: Final = (255, 255, 255, 255)
BLACK: Final = (0, 0, 0, 255)

# White strokes on what is transparent, in every way in which a picture can be transparent.
STROKES: Final = {
    "RGBA": file_of(draw(WHITE)),
    "RGBA on transparent white": file_of(draw(WHITE, (255, 255, 255, 0))),
    "RGBA in a WebP": file_of(draw(WHITE), "WEBP"),
    "RGBA in a lossless WebP": file_of(draw(WHITE), "WEBP", lossless=True),
    "LA": file_of(draw(WHITE).convert("LA")),
    "a palette": file_of(draw(WHITE).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE), transparency=0)
    if draw(WHITE).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).getpixel((0, 0)) == 0
    else file_of(draw(WHITE).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE), transparency=1),
    **{
        f"grey of {depth} bits with a transparent colour": png(
            0, depth, pack(two(2**depth - 1, 0), depth), (b"tRNS", b"\0\0")
        )
        for depth in (1, 2, 4, 8, 16)
    },
    "grey of 16 bits on transparent grey": png(0, 16, pack(two(65535, 0x1234), 16), (b"tRNS", b"\x12\x34")),
    "grey of 4 bits on transparent grey": png(0, 4, pack(two(15, 9), 4), (b"tRNS", b"\0\x09")),
    "RGB with a transparent colour": png(
        2, 8, np.repeat(two(255, 9)[:, :, None], 3, 2).astype(np.uint8).tobytes(), (b"tRNS", b"\0\x09" * 3)
    ),
    "RGB of 16 bits with a transparent colour": png(
        2, 16, np.repeat(two(65535, 0x0912)[:, :, None], 3, 2).astype(">u2").tobytes(), (b"tRNS", b"\x09\x12" * 3)
    ),
}


@pytest.mark.parametrize("data", STROKES.values(), ids=STROKES)
def test_white_strokes_on_what_is_transparent_are_painted_and_nothing_else(data: bytes) -> None:
    assert (paint(data) == STROKE).all()
    assert (paint(data, "strokes") == STROKE).all()
    assert (paint(data, "holes") == ~STROKE).all()


@pytest.mark.parametrize("data", STROKES.values(), ids=STROKES)
def test_whatever_is_transparent_in_a_picture_is_white(data: bytes) -> None:
    assert (np.asarray(decode(data, "image"))[~STROKE] == 255).all()


@pytest.mark.parametrize(
    "mask",
    [
        draw(WHITE, BLACK),
        draw(WHITE, BLACK).convert("RGB"),
        draw(WHITE, BLACK).convert("L"),
        draw(WHITE, BLACK).convert("1"),
        draw(WHITE, BLACK).convert("LA"),
        draw((200, 200, 200, 255), (90, 90, 90, 255)),
    ],
    ids=lambda mask: mask.mode,
)
def test_a_mask_without_transparency_is_light_and_dark_as_ever(mask: Image.Image) -> None:
    assert (paint(file_of(mask)) == STROKE).all()
    with pytest.raises(InvalidParameter) as refused:
        paint(file_of(mask), "holes")
    assert refused.value.field == "mask_alpha"


PHOTO: Final = gradient(SIDE, SIDE).convert("RGBA")
HOLE: Final = Image.fromarray(np.where(STROKE, 0, 255).astype(np.uint8))


def with_hole(image: Image.Image) -> Image.Image:
    cut = image.copy()
    cut.putalpha(HOLE)
    return cut


@pytest.mark.parametrize(
    "mask",
    [
        with_hole(PHOTO),
        with_hole(PHOTO.convert("L")).convert("RGBA"),
        with_hole(Image.new("RGBA", (SIDE, SIDE), BLACK)),
        with_hole(Image.new("RGBA", (SIDE, SIDE), (200, 30, 30, 255))),
    ],
    ids=["a photo", "a grey photo", "black", "red"],
)
def test_holes_are_never_guessed_and_served_where_they_are_said(mask: Image.Image) -> None:
    with pytest.raises(InvalidParameter, match="mask_alpha") as refused:
        paint(file_of(mask))
    assert refused.value.field == "mask"
    assert (paint(file_of(mask), "holes") == STROKE).all()


@pytest.mark.parametrize("colour", [(0, 0, 0, 255), (255, 0, 0, 255), (255, 64, 0, 200), (128, 128, 128, 255)], ids=str)
def test_strokes_of_another_colour_are_never_guessed_and_served_where_they_are_said(colour: tuple[int, ...]) -> None:
    with pytest.raises(InvalidParameter, match="mask_alpha"):
        paint(file_of(draw(colour)))
    assert (paint(file_of(draw(colour)), "strokes") == STROKE).all()


def test_white_and_black_strokes_on_what_is_transparent_say_what_they_say_everywhere() -> None:
    mask = draw(WHITE)
    ImageDraw.Draw(mask).rectangle((50, 0, 63, 63), fill=BLACK)
    assert (paint(file_of(mask)) == STROKE).all()


def test_a_mask_of_which_nothing_is_visible_is_refused() -> None:
    with pytest.raises(InvalidParameter):
        paint(file_of(Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))))


def test_a_stroke_with_soft_edges_is_painted_from_half_on() -> None:
    alpha = np.tile(np.linspace(0, 255, SIDE).astype(np.uint8), (SIDE, 1))
    mask = Image.new("RGBA", (SIDE, SIDE), WHITE)
    mask.putalpha(Image.fromarray(alpha))
    assert (paint(file_of(mask)) == (alpha >= 128)).all()


def test_light_lines_on_what_is_transparent_are_a_hint_on_black() -> None:
    hint = np.asarray(hint_of(decode_layer(STROKES["RGBA"], "control_image")))
    assert (hint[STROKE] == 255).all()
    assert (hint[~STROKE] == 0).all()
    black = np.asarray(hint_of(decode_layer(file_of(Image.new("RGB", (SIDE, SIDE))), "control_image")))
    assert not black.any()
    with pytest.raises(InvalidParameter) as refused:
        hint_of(decode_layer(file_of(draw(BLACK)), "control_image"))
    assert refused.value.field == "control_image"


def test_a_request_gets_its_mask_and_its_hint_by_these_rules() -> None:
    controls = (ControlSettings(type="canny"),)
    params = GenerationParams(prompt="a cup", seed=1, model_name="tiny", width=SIDE, height=SIDE, controls=controls)
    uploads = Uploads(file_of(PHOTO), STROKES["LA"], hints=(STROKES["LA"],))
    inputs = decode_uploads(Request("r", params, uploads=uploads), Annotators()).inputs
    assert inputs.mask is not None
    assert ((inputs.mask >= 128) == STROKE).all()
    assert ((inputs.hints[0][:, :, 0] >= 128) == STROKE).all()
    photo = Uploads(hints=(file_of(draw(BLACK)),), preprocess=True)
    made = decode_uploads(Request("r", params, uploads=photo), Annotators()).inputs
    assert made.hints[0].any()


def test_python_callers_have_the_same_rules() -> None:
    processor = ImageProcessor()
    assert ((np.asarray(processor.load_mask(draw(WHITE))) >= 128) == STROKE).all()
    assert (paint(to_png(draw(WHITE))) == STROKE).all()
    with pytest.raises(InvalidParameter, match="mask_alpha"):
        processor.load_mask(with_hole(PHOTO))
    buffer = io.BytesIO()
    with_hole(PHOTO).save(buffer, "PNG")
    assert ((np.asarray(processor.load_mask(buffer.getvalue(), "holes")) >= 128) == STROKE).all()

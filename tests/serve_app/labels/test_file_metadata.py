"""Texts are put into files of every format, read back by whoever reads such files, and cost the picture nothing."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from sd_parsers import ParserManager

from serve_app.labels.file_metadata import MAX_TEXT_BYTES, FileTexts, add_texts, read_texts
from serve_app.labels.source_type import CHANGED, MADE, read_source_type, xmp_of
from tests.serve_app.labels.files import FORMATS, file_of, opened, pixels_of

TEXT = "a red cup\nNegative prompt: text\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 72x56, Model: demo-sd"
WIDE = TEXT.replace("a red cup", "红色杯子 🏆")

every_format = pytest.mark.parametrize("output_format", FORMATS)
both_texts = pytest.mark.parametrize("text", [TEXT, WIDE])


@every_format
@both_texts
def test_what_is_put_in_is_read_back_and_the_picture_is_as_it_was(output_format: str, text: str) -> None:
    file = file_of(output_format)
    texts = FileTexts(text, xmp_of(MADE))
    labelled = add_texts(file, texts)
    assert read_texts(labelled) == texts
    assert np.array_equal(pixels_of(labelled), pixels_of(file))
    assert opened(labelled).format == output_format.upper()


@every_format
@both_texts
def test_sd_parsers_reads_the_file(output_format: str, text: str) -> None:
    info = ParserManager().parse(io.BytesIO(add_texts(file_of(output_format), FileTexts(text, xmp_of(MADE)))))
    assert info is not None
    assert [each.value for each in info.samplers[0].prompts] == [text.split("\n")[0]]
    assert info.samplers[0].parameters["seed"] == "3"


@both_texts
def test_a_png_has_the_text_where_a1111_looks(text: str) -> None:
    picture = opened(add_texts(file_of("png"), FileTexts(text)))
    assert isinstance(picture, PngImagePlugin.PngImageFile)
    assert picture.text["parameters"] == text


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
@both_texts
def test_others_have_it_where_a1111_looks(output_format: str, text: str) -> None:
    comment = opened(add_texts(file_of(output_format), FileTexts(text))).getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == text


@every_format
def test_pillow_finds_the_xmp(output_format: str) -> None:
    picture = opened(add_texts(file_of(output_format), FileTexts(None, xmp_of(CHANGED))))
    assert read_source_type(picture.info["xmp"]) == CHANGED
    assert not picture.getexif()


@every_format
def test_a_file_with_nothing_says_nothing(output_format: str) -> None:
    assert read_texts(file_of(output_format)) == FileTexts()
    assert read_texts(add_texts(file_of(output_format), FileTexts())) == FileTexts()


@pytest.mark.parametrize("sides", [(64, 2048), (65, 67), (8, 8)])
@every_format
def test_files_of_any_shape_stay_whole(output_format: str, sides: tuple[int, int]) -> None:
    labelled = add_texts(file_of(output_format, *sides), FileTexts(TEXT, xmp_of(MADE)))
    assert opened(labelled).size == sides


@every_format
def test_a_camera_s_comment_is_read_too(output_format: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + TEXT.encode()
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, output_format.upper(), exif=exif.tobytes())
    assert read_texts(file.getvalue()).parameters == TEXT


@every_format
def test_a_broken_file_is_read_as_far_as_it_goes(output_format: str) -> None:
    whole = add_texts(file_of(output_format), FileTexts(WIDE, xmp_of(MADE)))
    for end in range(0, len(whole), 7):
        read_texts(whole[:end])
    rng = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 1200), 6):
            damaged[at] = int(rng.integers(256))
        read_texts(bytes(damaged))


def test_a_text_that_is_too_long_or_compressed_is_not_looked_at() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    png = file_of("png")
    bomb = zlib.compress(b"x" * 10**7)
    for piece in (
        chunk(b"tEXt", b"parameters\0" + b"x" * (MAX_TEXT_BYTES + 1)),
        chunk(b"zTXt", b"parameters\0\0" + bomb),
        chunk(b"iTXt", b"parameters\0\1\0\0\0" + bomb),
    ):
        assert read_texts(png[:33] + piece + png[33:]).parameters is None


def test_what_could_steer_a_terminal_is_left_out() -> None:
    assert read_texts(add_texts(file_of("jpeg"), FileTexts("a\x1b[2Jb\ud800c"[:5] + "d"))).parameters == "a[2Jd"


@pytest.mark.parametrize(
    ("xmp", "found"),
    [
        (xmp_of(MADE), MADE),
        (b"<x:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture</x>", "digitalCapture"),
        (
            b'<x:DigitalSourceType rdf:resource="https://cv.iptc.org/newscodes/digitalsourcetype/minorHumanEdits"/>',
            "minorHumanEdits",
        ),
        (b'<x DigitalSourceType="http://elsewhere.test/trainedAlgorithmicMedia"/>', None),
        (b"DigitalSourceType" * 9999 + b" " * 99999, None),
        (b"<!DOCTYPE x [<!ENTITY a 'b'>]>", None),
        (b"", None),
    ],
    ids=["ours", "element", "resource", "other vocabulary", "long", "entities", "nothing"],
)
def test_a_source_type_is_found_however_it_is_written(xmp: bytes, found: str | None) -> None:
    assert read_source_type(xmp) == found

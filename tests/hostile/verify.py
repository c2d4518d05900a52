"""Rows about the endpoint that reads what pictures say of themselves: texts, EXIF, XMP and manifests of anybody's."""

from typing import Final

import numpy as np

from tests.deployments.uploads.test_image_files import file_of, gradient, png_claiming
from tests.hostile.pictures import BOMB, FIELD, MINIMAL_EPS, SVG, flat, form, png, tiff_in_exif
from tests.hostile.rows import DIFFUSION, Row, got, said
from tests.serve_app.api.parsing.test_hostile_forms import field, file

DOOR: Final = f"{DIFFUSION}/verify"
NOISE: Final = np.random.default_rng(2).bytes(100_000)
INSIDE: Final = b"http://169.254.169.254/SECRET"
XMP: Final = b"XML:com.adobe.xmp\0\0\0\0\0"
ENTITIES: Final = b"<!DOCTYPE x [<!ENTITY a '" + b"x" * 1000 + b"'>]><x DigitalSourceType='" + b"&a;" * 10_000 + b"'/>"
JPEG: Final = file_of(gradient(), "JPEG")


def looked_at(name: str, data: bytes, status: int = 200) -> Row:
    """A picture that is asked about."""
    code, param = (FIELD, "image") if status != 200 else (None, "")
    return form(f"verify: {name}", file(b"image", data), status=status, code=code, param=param, door=DOOR)


def saying(name: str, *chunks: tuple[bytes, bytes]) -> Row:
    """A small picture with such chunks."""
    return looked_at(name, png(64, 64, *chunks, idat=flat(64, 64)))


def segment(marker: int, data: bytes) -> bytes:
    """A JPEG with such a segment."""
    return JPEG[:2] + bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data + JPEG[2:]


ROWS: Final = (
    saying("nothing"),
    saying("parameters without end", (b"zTXt", b"parameters\0\0" + BOMB)),
    saying("international parameters without end", (b"iTXt", b"parameters\0\1\0\0\0" + BOMB)),
    saying("a megabyte of parameters", (b"tEXt", b"parameters\0" + b"a: 1, " * 170_000)),
    saying("parameters of quotes", (b"tEXt", b"parameters\0" + b'a: "' * 60_000)),
    saying("parameters of control characters", (b"tEXt", b"parameters\0\x1b[2J\x00\x07Steps: 1")),
    saying("parameters of an escape that is no character", (b"tEXt", b'parameters\0Steps: 2, X: "\\ud800", Seed: 3')),
    saying("parameters of escapes that steer", (b"tEXt", b'parameters\0Steps: 2, X: "\\u001b[2J\\u0000", Seed: 3')),
    saying("parameters of no text", (b"iTXt", b"parameters\0\0\0\0\0\xff\xfe\xed\xa0\x80")),
    saying("XMP of entities", (b"iTXt", XMP + ENTITIES)),
    saying("a manifest that lies elsewhere", (b"iTXt", XMP + b'<x dcterms:provenance="' + INSIDE + b'"/>')),
    saying("a manifest of noise", (b"caBX", NOISE)),
    saying("a manifest of four gigabytes", (b"caBX", b"\xff\xff\xff\xffjumb" + NOISE[:100])),
    saying("a manifest in a thousand boxes", (b"caBX", b"".join(i.to_bytes(4) + b"jumb" for i in range(8000, 0, -8)))),
    saying("EXIF of nonsense", (b"eXIf", b"MM\0*" + NOISE[:5000])),
    looked_at("EXIF in a circle", tiff_in_exif()),
    looked_at("a JPEG's manifest of noise", segment(0xEB, b"JP\0\1\0\0\0\1" + NOISE[:60_000])),
    looked_at("a JPEG's XMP of nonsense", segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + NOISE[:60_000])),
    looked_at("4,096 x 4,096 of nothing", png(4_096, 4_096, idat=flat(4_096, 4_096))),
    looked_at("pixels without end", png(64, 64, idat=BOMB)),
    looked_at("60,000 x 60,000", png_claiming(60_000, 60_000), 422),
    looked_at("half a picture", file_of(gradient())[:90], 422),
    *(looked_at(name, data, 422) for name, data in {"EPS": MINIMAL_EPS, "SVG": SVG, "an address": INSIDE}.items()),
    form("verify: no picture", param="image", door=DOOR),
    form("verify: an address instead", field(b"image", INSIDE), param="image", door=DOOR),
    form(
        "verify: a prompt beside it",
        file(b"image", JPEG),
        field(b"prompt"),
        code="unknown_field",
        param="prompt",
        door=DOOR,
    ),
    said("verify: JSON", b'{"image": "http://169.254.169.254/SECRET"}', 415, door=DOOR),
    got("verify: GET", DOOR, 405),
)

"""Rows about forms and the files in them: bombs, disguises, cut-off and many-headed pictures, names that are paths."""

import struct
import zlib
from typing import Any, Final

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.deployments.uploads.test_image_files import file_of, gradient, png_claiming, turn
from tests.hostile.rows import DIFFUSION, IMAGE_DOOR, Headers, Row, said
from tests.hostile.wire import request
from tests.serve_app.api.parsing.test_hostile_forms import END, FORM, FORMS, field, file, part

TYPED: Final[Headers] = tuple(FORM.items())
FIELD: Final = "invalid_parameter"
NOISE: Final = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))


def form(
    name: str, *parts: bytes, status: int = 422, code: str | None = FIELD, param: str = "", door: str = IMAGE_DOOR
) -> Row:
    """A form of those parts, posted to a door."""
    return said(name, b"".join(parts) + END, status, code, param or None, door=door, headers=TYPED)


def shown(name: str, data: bytes, status: int = 422) -> Row:
    """A picture for image-to-image."""
    code, param = (FIELD, "init_image") if status != 200 else (None, "")
    return form(name, field(b"prompt"), SMALL, file(b"init_image", data), status=status, code=code, param=param)


def png(
    width: int, height: int, *chunks: tuple[bytes, bytes], idat: bytes = b"", depth: int = 8, kind: int = 2
) -> bytes:
    """A PNG of these chunks, each with its proper checksum."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    every = [(b"IHDR", header), *chunks, (b"IDAT", idat), (b"IEND", b"")]
    pieces = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in every
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def flat(width: int, height: int) -> bytes:
    """The compressed lines of a black RGB picture."""
    return zlib.compress(bytes(height * (1 + 3 * width)))


def animated(kind: str) -> bytes:
    return file_of(gradient(), kind, save_all=True, append_images=[gradient().rotate(180)])


def texts(count: int, size: int) -> bytes:
    """A PNG with that many compressed texts."""
    told = PngInfo()
    for i in range(count):
        told.add_text(f"SECRET{i}", "SECRET" * (size // 6), zip=True)
    return file_of(gradient(), "PNG", pnginfo=told)


def broken_checksum() -> bytes:
    data = bytearray(file_of(NOISE))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def tiff_in_exif() -> bytes:
    """EXIF whose directory goes round in a circle, and whose numbers are larger than the file."""
    entry = struct.pack(">HHII", 0x0112, 3, 0xFFFFFFFF, 0xFFFFFF00)
    directory = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 1) + entry + struct.pack(">I", 8)
    return file_of(gradient(), "JPEG", exif=b"Exif\0\0" + directory)


SMALL: Final = field(b"width", b"64") + field(b"height", b"64")
GOOD_FILE: Final = file(b"init_image", file_of(gradient()))
GOOD_FORM: Final = field(b"prompt") + SMALL + GOOD_FILE + END
BOMB: Final = zlib.compress(bytes(60_000_000), 9)
MINIMAL_EPS: Final = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(SECRET) run\nshowpage\n"
SVG: Final = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://169.254.169.254/SECRET"/></svg>'

DISGUISED: Final = (
    shown("nothing", b""),
    shown("one byte", b"\x89"),
    shown("a megabyte of noise", np.random.default_rng(1).bytes(1_000_000)),
    shown("EPS", MINIMAL_EPS),
    shown(
        "EPS behind a DOS header",
        b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(MINIMAL_EPS)) + bytes(18) + MINIMAL_EPS,
    ),
    shown("SVG", SVG),
    shown("SVG that says it is a PNG", b"\x89PNG\r\n\x1a\n" + SVG),
    shown("PDF", b"%PDF-1.7\n1 0 obj<</SECRET/URI(http://169.254.169.254)>>endobj\n"),
    shown("an address", b"http://169.254.169.254/SECRET.png"),
    shown("a path", b"/etc/passwd"),
    shown("a pickle", b"cos\nsystem\n(S'echo SECRET'\ntR."),
    shown("a zip", b"PK\x03\x04SECRET"),
    *(
        shown(kind, file_of(gradient(), kind))
        for kind in ("GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS")
    ),
    shown("JPEG 2000", file_of(gradient(), "JPEG2000")),
    shown("HTML behind a JPEG", file_of(gradient(), "JPEG") + b"<script>SECRET</script>", 200),
    shown("a JPEG behind HTML", b"<html>SECRET</html>" + file_of(gradient(), "JPEG")),
    shown("a zip behind a PNG", file_of(gradient()) + b"PK\x03\x04SECRET", 200),
    form(
        "a JPEG called PNG",
        field(b"prompt"),
        SMALL,
        part(
            b'form-data; name="init_image"; filename="SECRET.png"',
            file_of(gradient(), "JPEG"),
            b"Content-Type: image/png\r\n",
        ),
        status=200,
        code=None,
    ),
    form(
        "a PNG called a page",
        field(b"prompt"),
        SMALL,
        part(
            b'form-data; name="init_image"; filename="SECRET.html"', file_of(gradient()), b"Content-Type: text/html\r\n"
        ),
        status=200,
        code=None,
    ),
)

BOMBS: Final = (
    shown("60,000 x 60,000", png_claiming(60_000, 60_000)),
    shown("9,000 x 9,000", png_claiming(9_000, 9_000)),
    shown("4,097 x 4,097", png_claiming(4_097, 4_097)),
    shown("a ribbon", png_claiming(60_000, 20)),
    shown("2^31 - 1 x 1", png_claiming(2**31 - 1, 1)),
    shown("0 x 0", png_claiming(0, 0)),
    shown("1 x 1", file_of(gradient(1, 1))),
    shown("1 x 4,096", file_of(gradient(1, 4_096))),
    shown("4,096 x 4,096 of nothing", png(4_096, 4_096, idat=flat(4_096, 4_096)), 200),
    shown("pixels without end", png(64, 64, idat=BOMB), 200),
    shown("pixels that never come", png(4_096, 4_096, idat=zlib.compress(b"\0"))),
    # Nobody reads them, so nobody unpacks them.
    shown("a colour profile without end", png(64, 64, (b"iCCP", b"SECRET\0\0" + BOMB), idat=flat(64, 64)), 200),
    shown("a text without end", png(64, 64, (b"zTXt", b"SECRET\0\0" + BOMB), idat=flat(64, 64)), 200),
    shown(
        "an international text without end",
        png(64, 64, (b"iTXt", b"SECRET\0\1\0\0\0" + BOMB), idat=flat(64, 64)),
        200,
    ),
    shown("900 texts of 900 kB", texts(900, 900_000), 200),
    shown("a million chunks", png(64, 64, *[(b"teSt", b"")] * 1_000_000, idat=flat(64, 64))),
    shown(
        "a million comments",
        file_of(gradient(), "JPEG")[:2] + b"\xff\xfe\0\2" * 1_000_000 + file_of(gradient(), "JPEG")[2:],
    ),
    shown("a chunk of four gigabytes", b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR" + b"SECRET" * 20),
    shown("a JPEG of 65,500 x 65,500", file_of(gradient(), "JPEG").replace(b"\0\x30\0\x40", b"\xff\xdc\xff\xdc", 1)),
    shown("a WebP of 16,383 x 16,383", b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xfe\x3f\0\xfe\x3f\0"),
)

BROKEN: Final = (
    *(
        shown(f"half a {kind}", file_of(NOISE, kind)[: len(file_of(NOISE, kind)) // 2])
        for kind in ("PNG", "JPEG", "WEBP")
    ),
    *(shown(f"the head of a {kind}", file_of(NOISE, kind)[:60]) for kind in ("PNG", "JPEG", "WEBP")),
    shown("a broken checksum", broken_checksum()),
    shown("a palette that is missing", png(64, 64, idat=zlib.compress(bytes(64 * 65)), kind=3)),
    shown("a kind of pixel that is none", png(64, 64, idat=flat(64, 64), kind=5)),
    shown("EXIF in a circle", tiff_in_exif(), 200),
    shown("an animated PNG", animated("PNG")),
    shown("an animated WebP", animated("WEBP")),
    shown("an animated GIF", animated("GIF")),
)

UNUSUAL: Final = (
    shown("CMYK", file_of(gradient().convert("CMYK"), "JPEG"), 200),
    shown("grey", file_of(gradient().convert("L")), 200),
    shown("one bit", file_of(gradient().convert("1")), 200),
    shown("a palette with holes", file_of(gradient().convert("P"), transparency=3), 200),
    shown("16 bits", file_of(Image.fromarray(np.full((64, 64), 0x8080, dtype=np.uint16))), 200),
    shown("transparent", file_of(gradient().convert("RGBA")), 200),
    shown("on its side", turn(6), 200),
    shown("EXIF of nonsense", file_of(gradient(), "JPEG", exif=b"SECRET!!"), 200),
    shown("EXIF with a place on earth", file_of(gradient(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0SECRET"), 200),
)


def beside(name: bytes, value: bytes, **rest: Any) -> Row:
    """A field beside a good picture."""
    told = f"{name.decode()} = {value[:30]!r}"
    return form(told, field(b"prompt"), SMALL, file(b"init_image", file_of(gradient())), field(name, value), **rest)


def guided(name: bytes, value: bytes, param: str, code: str = FIELD) -> Row:
    """As `beside`, with a ControlNet's hint."""
    parts = (field(b"prompt"), SMALL, file(b"control_image", file_of(gradient())))
    kind = b"" if name == b"controlnet_type" else field(b"controlnet_type", b"canny")
    told = f"a ControlNet's {name.decode()} = {value[:30]!r}"
    return form(told, *parts, kind, field(name, value), code=code, param=param, door=f"{DIFFUSION}/controlnet")


FIELDS: Final = (
    *(beside(b"strength", value, code="not_finite", param="strength") for value in (b"1e999", b"-1e999")),
    *(
        beside(b"strength", value, code="wrong_type", param="strength")
        for value in (
            b"nan",
            b"NaN",
            b"inf",
            b"-Infinity",
            b"0x1",
            b"1_0",
            b" 0.5",
            "٠.٥".encode(),
            b"0.5\0",
            b"SECRET",
        )
    ),
    beside(b"strength", b"0", code="too_small", param="strength"),
    beside(b"strength", b"1.0001", code="too_large", param="strength"),
    beside(b"strength", b"0." + b"9" * 200_000, code="wrong_type", param="strength"),
    *(
        beside(b"num_inference_steps", value, code="wrong_type", param="num_inference_steps")
        for value in (b"1.5", b"1e-1", b"0b1", b"1_0", b" 1", "１".encode(), b"9" * 200_000)
    ),
    *(beside(b"num_inference_steps", value, status=200, code=None) for value in (b"1.0", b"1e1", b"")),
    beside(b"num_images", b"17", code="too_large", param="num_images"),
    beside(b"priority", b"11", code="not_allowed", param="priority"),
    beside(b"model_name", b"../../SECRET", status=404, code="model_not_found", param="model_name"),
    beside(b"model_name", b"http://169.254.169.254/SECRET", status=404, code="model_not_found", param="model_name"),
    beside(b"fit", b"../../SECRET", param="fit"),
    beside(b"mask_type", b"center", code="unknown_field"),
    beside(b"init_image", b"http://169.254.169.254/SECRET.png", param="init_image"),
    beside(b"init_image", b"data:image/png;base64,SECRET", param="init_image"),
    beside(b"_charset_", b"utf-7", code="unknown_field"),
    beside(b"params", b'{"prompt": "SECRET"}'),
    beside(b"params", b"[" * 100_000, status=400, code="nested_too_deep"),
    beside(b"params", b'{"seed": 1, "seed": 2}', code="duplicate_key"),
    beside(b"params", b'{"seed": NaN}', status=400, code="invalid_json"),
    *(
        guided(b"controlnet_type", name, "controlnet_type")
        for name in (b"../../../etc/passwd", b"SECRET", b"canny\0", b"http://SECRET")
    ),
    guided(b"controlnet_type", b"", "control_image"),
    *(
        guided(b"controlnet_conditioning_scale", number, "controlnet_conditioning_scale")
        for number in (b"nan", b"inf", b"-1", b"1e999", b"SECRET", b"2.1", b"1_0", b" 1", "１".encode(), b"0x1")
    ),
    guided(b"control_guidance_start", b"1", "control_guidance_start"),
    guided(b"control_guidance_end", b"0", "control_guidance_start"),
    guided(b"preprocess", b"SECRET", "preprocess"),
    guided(b"mask_type", b"center", "init_image"),
)

PATHS: Final = tuple(
    form(
        f"a file called {name[:40]!r}",
        field(b"prompt"),
        SMALL,
        part(b'form-data; name="init_image"; filename="' + name + b'"', file_of(gradient())),
        status=200,
        code=None,
    )
    for name in (
        b"../../../../etc/passwd",
        b"/etc/SECRET",
        b"C:\\SECRET",
        b"SECRET\0.png",
        b"x" * 3_000,
        b"\xff\xfe",
        b"con",
    )
)

ODD_FORMS: Final = (
    *(
        said(f"form: {name}", sent, status, code, param, door=IMAGE_DOOR, headers=TYPED)
        for name, (sent, status, code, param) in FORMS.items()
    ),
    form(
        "a part of many headers",
        part(b'form-data; name="prompt"', b"SECRET", b"X-A: SECRET\r\n" * 5_000),
        status=400,
        code="invalid_form",
    ),
    form(
        "a part with a long header",
        part(b'form-data; name="prompt"', b"SECRET", b"X-A: " + b"SECRET" * 50_000 + b"\r\n"),
        status=400,
        code="invalid_form",
    ),
    form(
        "a part in base64",
        part(b'form-data; name="prompt"', b"U0VDUkVU", b"Content-Transfer-Encoding: base64\r\n"),
        SMALL,
        file(b"init_image", file_of(gradient())),
        param="prompt",
    ),
    form(
        "a part in another charset",
        part(b'form-data; name="prompt"', b"SECRET", b"Content-Type: text/plain; charset=utf-16\r\n"),
        SMALL,
        file(b"init_image", file_of(gradient())),
        param="prompt",
    ),
    form("a prompt in Latin-1", field(b"prompt", b"SECRET\xe9"), SMALL, GOOD_FILE, param="prompt"),
    form(
        "a picture without a file name",
        field(b"prompt"),
        SMALL,
        field(b"init_image", file_of(gradient())),
        status=200,
        code=None,
    ),
    form(
        "a picture with a file name in RFC 5987's writing",
        field(b"prompt"),
        SMALL,
        part(b"form-data; name=init_image; filename*=UTF-8''SECRET%20.png", file_of(gradient())),
        status=200,
        code=None,
    ),
    form(
        "a name said twice",
        part(b'form-data; name="prompt"; name="negative_prompt"'),
        status=400,
        code="invalid_form",
    ),
    form(
        "a header said twice",
        part(b'form-data; name="prompt"', b"SECRET", b'Content-Disposition: form-data; name="seed"\r\n'),
        status=400,
        code="invalid_form",
    ),
    said("form: something behind its end", GOOD_FORM + b"SECRET", 400, "invalid_form", door=IMAGE_DOOR, headers=TYPED),
    *(
        said(f"form: {kind}", GOOD_FORM, status, code, door=IMAGE_DOOR, headers=(("Content-Type", kind),))
        for kind, status, code in (
            ("multipart/form-data; boundary=x; boundary=y", 415, "unsupported_media_type"),
            ("multipart/form-data; boundary*0=x", 400, "invalid_form"),
            ("multipart/form-data; boundary=x; boundary*=y", 400, "invalid_form"),
            ('multipart/form-data; boundary="x', 415, "unsupported_media_type"),
            ("multipart/mixed; boundary=x", 415, "unsupported_media_type"),
        )
    ),
    Row(
        "a form over the limit",
        request("POST", IMAGE_DOOR, (*TYPED, ("Content-Length", "33554433"))),
        413,
        "body_too_large",
    ),
)

ROWS: Final = (*DISGUISED, *BOMBS, *BROKEN, *UNUSUAL, *FIELDS, *PATHS, *ODD_FORMS)

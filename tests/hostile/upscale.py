"""Rows about the endpoint that enlarges finished pictures."""

from typing import Final

from tests.deployments.uploads.test_image_files import file_of, gradient, png_claiming
from tests.hostile.pictures import FIELD, MINIMAL_EPS, SVG, flat, form, png
from tests.hostile.rows import DIFFUSION, Row, got, said
from tests.serve_app.api.parsing.test_hostile_forms import field, file

DOOR: Final = f"{DIFFUSION}/upscale"
PICTURE: Final = file(b"image", file_of(gradient()))
INSIDE: Final = b"http://169.254.169.254/SECRET"


def enlarged(name: str, *parts: bytes, status: int = 422, param: str | None = None) -> Row:
    code = FIELD if status == 422 else None
    return form(f"upscale: {name}", *parts, status=status, code=code, param=param or "", door=DOOR)


ROWS: Final = (
    enlarged("an upscaler that is a path", PICTURE, field(b"upscaler", b"../../SECRET"), param="upscaler"),
    enlarged("an upscaler that is an address", PICTURE, field(b"upscaler", INSIDE), param="upscaler"),
    enlarged("a scale without end", PICTURE, field(b"scale", b"1e308"), param="scale"),
    enlarged("a scale that is no number", PICTURE, field(b"scale", b"nan"), param="scale"),
    enlarged("a scale below nothing", PICTURE, field(b"scale", b"-2"), param="scale"),
    enlarged(
        "16 million pixels eight times",
        file(b"image", png(4_096, 4_096, idat=flat(4_096, 4_096))),
        field(b"scale", b"8"),
        param="scale",
    ),
    enlarged("60,000 x 60,000", file(b"image", png_claiming(60_000, 60_000)), param="image"),
    *(
        enlarged(name, file(b"image", data), param="image")
        for name, data in {"EPS": MINIMAL_EPS, "SVG": SVG, "an address": INSIDE}.items()
    ),
    form("upscale: no picture", param="image", door=DOOR),
    said("upscale: JSON", b'{"image": "http://169.254.169.254/SECRET"}', 415, door=DOOR),
    got("upscale: GET", DOOR, 405),
)

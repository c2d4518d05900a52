"""Rows about the endpoints for OpenAI's clients: the same layers and readers, and 400 where the others say 422."""

import json
from typing import Any, Final

from tests.deployments.uploads.test_image_files import file_of, gradient, png_claiming
from tests.hostile.pictures import FIELD, SVG, form
from tests.hostile.rows import Row, got, said
from tests.serve_app.api.parsing.test_hostile_forms import field, file

GENERATIONS: Final = "/v1/images/generations"
EDITS: Final = "/v1/images/edits"
INSIDE: Final = "http://169.254.169.254/SECRET"
GOOD_IMAGE: Final = file(b"image", file_of(gradient()))


def generation(
    name: str, fields: dict[str, Any], status: int = 400, code: str | None = None, param: str | None = None
) -> Row:
    body = json.dumps({"prompt": "SECRET cup", "size": "64x64"} | fields).encode()
    return said(name, body, status, code, param, door=GENERATIONS)


def edit(name: str, *parts: bytes, status: int = 400, code: str | None = FIELD, param: str = "image") -> Row:
    good = (field(b"prompt"), field(b"size", b"64x64"))
    return form(name, *good, *parts, status=status, code=code, param=param, door=EDITS)


ROWS: Final = (
    generation("an image for OpenAI's client", {}, 200),
    generation("a size of a million", {"size": "1000000x1000000"}, code="invalid_value", param="size"),
    generation("a size with a line break", {"size": "64x64\n"}, code="invalid_value", param="size"),
    generation("a size in other digits", {"size": "٦٤x٦٤"}, code="invalid_value", param="size"),
    generation("a size of a megabyte", {"size": "6" * 900_000}, code="too_long", param="size"),
    generation("a size that is negative", {"size": "-64x64"}, code="invalid_value", param="size"),
    generation("a billion images", {"n": 10**9}, code="too_large", param="n"),
    generation("no image", {"n": 0}, code="too_small", param="n"),
    generation("true images", {"n": True}, code="wrong_type", param="n"),
    generation("a model that is a path", {"model": "../../SECRET"}, 404, "model_not_found", "model"),
    generation("a model that is an address", {"model": INSIDE}, 404, "model_not_found", "model"),
    generation("a model of two lines", {"model": "tiny\nSECRET"}, code="invalid_value", param="model"),
    generation("an image to fetch", {"image_url": INSIDE}, code="unknown_parameter", param="image_url"),
    generation("images to fetch", {"images": [{"image_url": INSIDE}]}, code="unknown_parameter", param="images"),
    generation("a URL for an answer", {"response_format": "url"}, code="invalid_value", param="response_format"),
    generation("an SVG by a model", {"svg": {"model": "SECRET"}}, code="unsupported_parameter", param="svg"),
    generation("a format that is a path", {"output_format": "../SECRET"}, code="unsupported_value"),
    generation("a compression of a million", {"output_format": "jpeg", "output_compression": 10**6}, code="too_large"),
    generation("a hundred previews", {"stream": True, "partial_images": 100}, code="too_large", param="partial_images"),
    generation("a user of a megabyte", {"user": "SECRET" * 100_000}, code="too_long", param="user"),
    generation("a user without Unicode", {"user": "\ud800"}, code="invalid_unicode", param="user"),
    generation("a stream of nothing", {"stream": True, "prompt": None}, code="wrong_type", param="prompt"),
    said("a generation twice", b'{"prompt": "a", "prompt": "b"}', 400, "duplicate_key", door=GENERATIONS),
    said("a generation that is a list", b'["SECRET"]', 400, "wrong_type", door=GENERATIONS),
    said("a generation that is no JSON", b"SECRET", 400, "invalid_json", door=GENERATIONS),
    edit("an edit for OpenAI's client", GOOD_IMAGE, status=200, code=None, param=""),
    edit("an edit of nothing"),
    edit("an edit of a bomb", file(b"image", png_claiming(60_000, 60_000))),
    edit("an edit of an SVG", file(b"image[]", SVG)),
    edit("an edit of an address", field(b"image", INSIDE.encode()), param="image"),
    edit("an edit of seven images", *[GOOD_IMAGE] * 7),
    edit("an edit with a mask of another size", GOOD_IMAGE, file(b"mask", png_claiming(60_000, 60_000)), param="mask"),
    edit(
        "an edit with controls for nobody",
        GOOD_IMAGE,
        *[field(b"controls[][scale]", b"1")] * 40,
        code="too_long",
        param="controls",
    ),
    edit(
        "an edit with names in brackets",
        GOOD_IMAGE,
        field(b"svg[model]", b"SECRET"),
        code="unknown_parameter",
        param="",
    ),
    edit("an edit with n in words", GOOD_IMAGE, field(b"n", b"1_0"), code="wrong_type", param="n"),
    got("a model of that name", "/v1/models/SECRET", 404, "model_not_found"),
    got("a model with an owner", "/v1/models/SECRET/..%2fetc", 404),
    got("a model with a null", "/v1/models/%00SECRET", 404, "model_not_found"),
    got("a model of a thousand characters", f"/v1/models/{'x' * 1000}", 404, "model_not_found"),
    got("variations, which are gone", "/v1/images/variations", 404, "not_found", method="POST"),
)

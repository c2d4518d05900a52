"""Hostile and mistaken forms: each has its proper answer, which echoes nothing, and reaches no engine."""

import asyncio
import io
from typing import Final

import httpx
import pytest
from PIL import Image

from serve_app.api.parsing.forms import MAX_FIELDS, MAX_TEXT_BYTES
from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.fakes import FakeBackend

DOOR: Final = "/ads/v2/diffusion/image-to-image"
FORM: Final = {"Content-Type": "multipart/form-data; boundary=x"}


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def part(disposition: bytes, content: bytes = b"SECRET", more: bytes = b"") -> bytes:
    return b"--x\r\nContent-Disposition: " + disposition + b"\r\n" + more + b"\r\n" + content + b"\r\n"


def field(name: bytes, content: bytes = b"SECRET") -> bytes:
    return part(b'form-data; name="' + name + b'"', content)


def file(name: bytes, content: bytes) -> bytes:
    return part(b'form-data; name="' + name + b'"; filename="SECRET.png"', content)


END: Final = b"--x--\r\n"
GOOD: Final = field(b"prompt") + file(b"init_image", picture())
NESTED: Final = (
    b'--x\r\nContent-Disposition: form-data; name="init_image"\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n'
    b'--y\r\nContent-Disposition: file; filename="SECRET.png"\r\n\r\n' + picture() + b"\r\n--y--\r\n"
)

# What the caller sends -> status, code, the field that is to blame.
FORMS: Final[dict[str, tuple[bytes, int, str, str | None]]] = {
    "nothing": (b"", 400, "invalid_form", None),
    "no part": (END, 422, "invalid_parameter", "init_image"),
    "no boundary": (b"SECRET", 400, "invalid_form", None),
    "another boundary": (GOOD.replace(b"--x", b"--z") + b"--z--\r\n", 400, "invalid_form", None),
    "no end": (GOOD[:-40], 400, "invalid_form", None),
    "no name": (part(b"form-data") + GOOD + END, 400, "invalid_form", None),
    "no disposition": (b"--x\r\n\r\nSECRET\r\n" + END, 400, "invalid_form", None),
    "many fields": (field(b"SECRET") * (MAX_FIELDS + 1) + GOOD + END, 400, "invalid_form", None),
    "many names": (b"".join(field(b"f%d" % i) for i in range(MAX_FIELDS + 1)) + END, 400, "invalid_form", None),
    "many files": (file(b"init_image", picture()) * 20 + END, 400, "invalid_form", None),
    "two files": (file(b"init_image", picture()) * 2 + field(b"prompt") + END, 422, "invalid_parameter", "init_image"),
    "a long name": (field(b"SECRET" * 100) + GOOD + END, 422, "unknown_field", None),
    "a huge name": (field(b"SECRET" * 50_000) + GOOD + END, 400, "invalid_form", None),
    "a strange name": (field(b"SECRET\xff<script>") + GOOD + END, 422, "unknown_field", None),
    "a huge text": (field(b"negative_prompt", b"x" * (MAX_TEXT_BYTES + 1)) + GOOD + END, 400, "invalid_form", None),
    "a nested form": (field(b"prompt") + NESTED + END, 422, "invalid_parameter", "init_image"),
    "a text for a file": (field(b"prompt") + field(b"init_image") + END, 422, "invalid_parameter", "init_image"),
    "a file for a text": (file(b"prompt", b"SECRET") + GOOD + END, 422, "invalid_parameter", "prompt"),
    "a file for an option": (file(b"fit", b"SECRET") + GOOD + END, 422, "invalid_parameter", "fit"),
    "a file of no known name": (file(b"SECRET", picture()) + GOOD + END, 422, "unknown_file", None),
    "a file under another door's name": (file(b"mask", picture()) + GOOD + END, 422, "unknown_file", None),
    "a name in both places": (
        field(b"params", b'{"SECRET<script>": 1}') + field(b"SECRET<script>") + GOOD + END,
        422,
        "unknown_field",
        None,
    ),
    "a boundary in a name": (field(b"--x--") + GOOD + END, 422, "unknown_field", "--x--"),
    "params that are no JSON": (field(b"params") + GOOD + END, 400, "invalid_json", None),
    "params that are deep": (field(b"params", b"[" * 50_000) + GOOD + END, 400, "nested_too_deep", None),
    "params that are binary": (file(b"params", b"SECRET\xff") + GOOD + END, 422, "invalid_parameter", "params"),
}


@pytest.mark.parametrize(("sent", "status", "code", "param"), FORMS.values(), ids=FORMS)
async def test_every_bad_form_has_its_answer(
    client: httpx.AsyncClient, backend: FakeBackend, sent: bytes, status: int, code: str, param: str | None
) -> None:
    async with asyncio.timeout(5):
        body = assert_problem(await client.post(DOOR, content=sent, headers=FORM), status, code)
    assert body["error"]["param"] == param
    assert not backend.asked


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 5000],
)
async def test_a_form_needs_its_boundary(client: httpx.AsyncClient, content_type: str) -> None:
    response = await client.post(DOOR, content=GOOD + END, headers={"Content-Type": content_type})
    assert_problem(response, 400, "invalid_form")


async def test_a_good_form_passes(client: httpx.AsyncClient) -> None:
    assert (await client.post(DOOR, content=GOOD + END, headers=FORM)).status_code == 200

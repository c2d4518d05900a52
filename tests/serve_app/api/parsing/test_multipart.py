"""Multipart forms: a part is a file by its name and field, each fault is named, and nothing is spooled to disk."""

import tempfile
from typing import Final

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.api.parsing.forms import MAX_FIELDS
from serve_app.api.parsing.multipart import FormPart, parse_parts
from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.api.parsing.test_hostile_forms import DOOR, END, FORM, GOOD, field, file, part, picture
from tests.serve_app.fakes import FakeBackend

PROMPT: Final = field(b"prompt", b"a red cup")

FILES: Final = {
    "no file name": field(b"init_image", picture()),
    "no file name, and a type": part(b'form-data; name="init_image"', picture(), b"Content-Type: image/png\r\n"),
    "RFC 5987's file name": part(b"form-data; name=\"init_image\"; filename*=UTF-8''a%20b.png", picture()),
    "both file names": part(b'form-data; name="init_image"; filename="a"; filename*=UTF-8\'\'a', picture()),
    "a charset, which says nothing of a picture": part(
        b'form-data; name="init_image"', picture(), b"Content-Type: image/png; charset=binary\r\n"
    ),
    "a type that is none": part(b'form-data; name="init_image"; filename="a"', picture(), b"Content-Type:\r\n"),
    "a name without quotes": part(b"form-data; name=init_image; filename=a.png", picture()),
    "headers in other letters": part(b'FORM-DATA; NAME="init_image"; FileName="a.png"', picture()),
    "Windows' file name": part(rb'form-data; name="init_image"; filename="C:\pictures\a.png"', picture()),
    "a quote in its name": part(rb'form-data; name="init_image"; filename="a\"b.png"', picture()),
}

# What is sent, and a word of the fault that must be named.
FAULTS: Final = {
    "nothing": (b"", "does not begin with the boundary"),
    "another boundary": (GOOD.replace(b"--x", b"--z"), "does not begin with the boundary"),
    "no end": (GOOD, "cut off"),
    "cut off in a part": ((GOOD + END)[:-40], "cut off"),
    "cut off in a boundary": ((GOOD + END)[:-3], "boundary"),
    "no name": (part(b"form-data") + END, "name="),
    "an attachment": (part(b'attachment; name="prompt"') + END, "form-data"),
    "no headers": (b"--x\r\n\r\nSECRET\r\n" + END, "no Content-Disposition"),
    "headers without an end": (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n' + END, "do not end"),
    "a header that is none": (part(b'form-data; name="prompt"', more=b"SECRET\r\n") + END, "is none"),
    "a header of two": (part(b'form-data; name="prompt"', more=b"Content-Disposition: form-data\r\n") + END, "twice"),
    "a name of two": (part(b'form-data; name="prompt"; name="seed"') + END, "twice"),
    "long headers": (part(b'form-data; name="prompt"', more=b"X: " + b"S" * 20_000 + b"\r\n") + END, "longer than"),
    "many fields": (field(b"prompt") * (MAX_FIELDS + 1) + END, "at most"),
    "many parts": (field(b"prompt") * 1_000 + END, "at most"),
    "something behind": (GOOD + END + b"SECRET", "follows its last boundary"),
    "a boundary in a part": (field(b"prompt", b"\r\n--xSECRET") + GOOD + END, "followed by something else"),
    "lines of Unix": ((GOOD + END).replace(b"\r\n", b"\n"), "boundary"),
}


@pytest.mark.parametrize("image", FILES.values(), ids=FILES)
async def test_a_part_is_a_file_by_its_field(image: bytes, client: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = await client.post(DOOR, content=PROMPT + image + END, headers=FORM)
    assert answer.status_code == 200, answer.text
    uploads = backend.asked[0].uploads
    assert uploads is not None
    assert uploads.image == picture()


@pytest.mark.parametrize(("sent", "word"), FAULTS.values(), ids=FAULTS)
async def test_each_fault_of_a_form_is_said(sent: bytes, word: str, client: httpx.AsyncClient) -> None:
    body = assert_problem(await client.post(DOOR, content=sent, headers=FORM), 400, "invalid_form")
    assert word in body["detail"]


@pytest.mark.parametrize(
    ("content_type", "status", "word"),
    [
        ("multipart/form-data", 400, "names no boundary"),
        ("multipart/form-data; boundary=", 400, "names no boundary"),
        ("multipart/form-data; boundary=" + "x" * 300, 400, "characters at most"),
        ("multipart/form-data; boundary*0=x; boundary*1=y", 400, "in no other way"),
        ("multipart/form-data; boundary=x; boundary=x", 415, "multipart/form-data"),
        ("multipart/form-data; boundary=x; BOUNDARY=y", 415, "multipart/form-data"),
        ("multipart/form-data; boundary=x; charset=utf-16", 415, "UTF-8"),
    ],
)
async def test_a_boundary_is_named_once_and_in_one_way(
    content_type: str, status: int, word: str, client: httpx.AsyncClient
) -> None:
    answer = await client.post(DOOR, content=GOOD + END, headers={"Content-Type": content_type})
    assert answer.status_code == status
    assert word in answer.json()["detail"]


@pytest.mark.parametrize("wrong", ["base64", "quoted-printable"])
async def test_an_encoded_part_is_refused_by_its_field(wrong: str, client: httpx.AsyncClient) -> None:
    more = f"Content-Transfer-Encoding: {wrong}\r\n".encode()
    sent = part(b'form-data; name="prompt"', b"U0VDUkVU", more) + file(b"init_image", picture()) + END
    body = assert_problem(await client.post(DOOR, content=sent, headers=FORM), 422, "invalid_parameter")
    assert body["error"]["param"] == "prompt"


async def test_a_large_file_needs_no_room_on_a_disk(
    client: httpx.AsyncClient, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    large = picture() + bytes(3_000_000)  # behind its end
    answer = await client.post(DOOR, content=PROMPT + file(b"init_image", large) + END, headers=FORM)
    assert answer.status_code == 200, answer.text


@given(st.lists(st.tuples(st.from_regex("[a-z_]{1,9}", fullmatch=True), st.binary(max_size=99), st.booleans())))
def test_what_is_written_is_read(parts: list[tuple[str, bytes, bool]]) -> None:
    sent = [
        FormPart(name, data, "SECRET.png" if is_file else None) for name, data, is_file in parts if b"--x" not in data
    ]
    body = b"".join((file if part.filename else field)(part.name.encode(), part.data) for part in sent)
    assert parse_parts(body + END, {"boundary": "x"}, len(sent)) == sent

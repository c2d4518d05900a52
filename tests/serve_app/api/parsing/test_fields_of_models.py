"""A form is read with the fields of the model that its endpoint takes: lists, numbers, and what is left out."""

import json
from typing import Annotated, Any

import pytest
from pydantic import Field

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.fields import StrictFields
from serve_app.api.parsing.forms import parse_form
from serve_app.api.parsing.multipart import parse_parts


class Recipe(StrictFields):
    """A model with a field of each kind."""

    name: str
    steps: Annotated[tuple[str, ...], Field(strict=False)] = ()
    weights: Annotated[tuple[int, ...], Field(strict=False)] = ()
    minutes: float | None = None


def parse(*fields: tuple[str, bytes]) -> dict[str, Any]:
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + text + b"\r\n"
        for name, text in fields
    )
    kind = {"boundary": "x"}
    assert len(parse_parts(body + b"--x--\r\n", kind, 10)) == len(fields)
    return dict(parse_form(body + b"--x--\r\n", kind, (), (), model=Recipe).parameters)


def test_one_text_of_a_list_is_a_list_and_texts_stay_texts() -> None:
    assert parse(("steps", b"stir")) == {"steps": ["stir"]}
    assert parse(("steps", b"1"), ("steps", b"2")) == {"steps": ["1", "2"]}
    assert parse(("weights", b"1"), ("weights", b"2")) == {"weights": [1, 2]}


def test_an_empty_part_is_left_out_if_the_model_can_do_without() -> None:
    assert parse(("minutes", b""), ("steps", b""), ("name", b"")) == {"name": ""}
    assert parse(("minutes", b"1.5")) == {"minutes": 1.5}


@pytest.mark.parametrize(
    ("fields", "name", "rule"),
    [
        ([("name", "tür".encode("latin-1"))], "name", "must be UTF-8"),
        ([("params", json.dumps({"name": "a"}).encode()), ("name", b"b")], "name", "is there twice"),
    ],
)
def test_what_cannot_be_read_in_one_way_is_refused_by_its_name(
    fields: list[tuple[str, bytes]], name: str, rule: str
) -> None:
    with pytest.raises(InvalidParameter, match=rule) as refused:
        parse(*fields)
    assert refused.value.field == name

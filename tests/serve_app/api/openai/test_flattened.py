"""Lists and objects of ours through the SDK, which takes them apart for a form: here they are whole again."""

from collections.abc import Iterator
from typing import Any, Final

import pytest
from fastapi import FastAPI, Request
from openai import OpenAI

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.params import GenerationParams
from serve_app.api.openai.edits import FILES, OPTIONS, read_edit_fields
from serve_app.api.openai.fields import our_fields, read_images_request
from serve_app.api.openai.flattened import join_fields
from serve_app.api.openai.model_names import ModelNames
from serve_app.api.parsing.forms import MAX_UPLOAD_BYTES, read_form
from tests.serve_app.api.openai.test_edits import PICTURE
from tests.serve_app.fakes import TINY
from tests.serve_app.servers import http_server

VALUES: Final[dict[str, list[Any]]] = {
    "controls": [
        [{"type": "canny", "scale": 0.5, "start": 0.1, "end": 0.9, "preprocess": True}],
        [{"type": "canny", "preprocess": False}, {"type": "depth", "preprocess": True}],
        [],
    ],
    "reference": [{"adapter": "style", "scale": 1, "weights": [0.5, 1]}, {"weights": [0.25]}, {}],
    "loras": [[{"name": "shoe", "scale": -0.5}, {"name": "7", "scale": 1}], [{"name": "shoe"}], []],
    "guidance_interval": [[0.2, 0.8], [0, 1]],
    "hires": [{"scale": 2, "upscaler": "lanczos", "strength": 0.5, "steps": 20}, {"scale": 1.5}, {"steps": None}],
    "output_size": [[300, 250]],
    "template_values": [{"product": "a cup", "colour": "7", "empty": "", "true": "true"}, {}],
}


def is_whole(name: str) -> bool:
    """Whether a field is a list or an object, and so comes in parts."""
    schema = GenerationParams.model_json_schema()["properties"][name]
    return any("$ref" in each or each.get("type") == "array" for each in schema.get("anyOf", [schema]))


def test_every_field_that_comes_in_parts_is_tried() -> None:
    assert {name for name in our_fields(edits=True) if is_whole(name)} == set(VALUES)


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    """The SDK, of a server that answers an edit with the parameters that it has read."""
    app = FastAPI()

    @app.post("/v1/images/edits")
    async def read(request: Request) -> dict[str, Any]:
        form = await read_form(request, MAX_UPLOAD_BYTES, FILES, OPTIONS)
        asked = read_images_request(read_edit_fields(form), ModelNames([TINY], ()), edits=True)
        return {"created": 0, "read": asked.params.model_dump(mode="json")}

    with http_server(app) as url, OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VALUES.items() for value in values])
def test_what_the_sdk_takes_apart_comes_back_whole(name: str, value: Any, client: OpenAI) -> None:
    made = client.images.edit(image=PICTURE, prompt="a cup", extra_body={name: value}).to_dict()["read"]
    # A list or an object with nothing in it leaves no part.
    given = {name: value} if value not in ([], {}, {"steps": None}) else {}
    assert made == GenerationParams(prompt="a cup", **given).model_dump(mode="json")


def test_all_of_them_come_together(client: OpenAI) -> None:
    every = {name: values[0] for name, values in VALUES.items()}
    made = client.images.edit(image=PICTURE, prompt="a cup", extra_body=every).to_dict()["read"]
    assert made == GenerationParams(prompt="a cup", **every).model_dump(mode="json")


@pytest.mark.parametrize(
    "parts",
    [
        {"loras[][name]": ["a", "b"], "loras[][scale]": "1"},
        {"hires[scale]": ["1", "2"]},
        {"hires[scale]": "2", "hires[]": "2"},
        {"hires[scale]": "2", "hires[scale][x]": "2"},
        {"loras[][name][]": ["a", "b"]},
        {"loras": [{"name": "a"}], "loras[][name]": "a"},
        {"loras[][name]": {"a": 1}},
    ],
)
def test_parts_that_do_not_fit_together_are_refused_by_the_fields_name(parts: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter) as refused:
        join_fields(parts, our_fields(edits=True))
    assert refused.value.field in ("loras", "hires")


@pytest.mark.parametrize("name", ["seed[", "nothing[a]", "hires[a[b]]", f"hires{'[]' * 5000}", "n[]", "hires [a]"])
def test_other_names_are_left_for_their_own_refusal(name: str) -> None:
    assert join_fields({name: "1"}, our_fields(edits=True)) == {name: "1"}

"""Prompt templates: filled by values that stay texts, whatever they look like."""

from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from deployments.engine.conditioning.prompt_syntax import parse_weighted
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.params import MAX_VALUES, GenerationParams
from serve_app.config.errors import ConfigError
from serve_app.config.server import load_config
from serve_app.generation.templates import TEMPLATES, PromptTemplate, apply_template, with_own
from serve_app.service import DiffusionService
from tests.serve_app.fakes import PATH, FakeBackend

COFFEE = {
    "product_name": "Premium Coffee",
    "brand_colors": "gold and brown",
    "target_audience": "young professionals",
    "cta_text": "Experience the difference",
    "style_description": "minimalist, elegant",
}
OWN = with_own([PromptTemplate("poster", "a poster of {prompt} in {colour}, {colour} frame")])


def params(**given: Any) -> GenerationParams:
    return GenerationParams.model_validate({"prompt": ""} | given)


async def test_the_guides_own_template_is_there_by_name(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    listed = (await client.get("/ads/v2/diffusion/templates")).json()["templates"]
    assert {each["name"]: each["template_values"] for each in listed}["product_advertisement"] == list(COFFEE)
    body = {"prompt": "", "template": "product_advertisement", "template_values": COFFEE}
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    prompt = backend.asked[0].params.prompt
    assert prompt.startswith("Professional advertisement for Premium Coffee: ")
    assert "brand colors: gold and brown" in prompt
    assert backend.asked[0].params.negative_prompt == "blurry, low quality, distorted"
    # What is repeated from the answer is the same request.
    parameters = answer.json()["parameters"]
    assert parameters["template_values"] == COFFEE
    await client.post(PATH, json=parameters)
    assert backend.asked[-1].params.prompt == prompt


def test_the_requests_own_prompt_comes_behind_or_where_its_place_is() -> None:
    behind = params(prompt="on a table", template="product_photo", template_values=photo())
    assert apply_template(behind, TEMPLATES).prompt.endswith("soft light, on a table")
    inside = params(prompt="a cup", template="poster", template_values={"colour": "red"}, negative_prompt="text")
    assert apply_template(inside, OWN).prompt == "a poster of a cup in red, red frame"
    assert apply_template(inside, OWN).negative_prompt == "text"


def photo(**more: str) -> dict[str, str]:
    return {"product_name": "a cup", "style_description": "plain"} | more


def test_a_value_that_looks_like_a_place_stays_as_it_is() -> None:
    filled = apply_template(
        params(prompt="{colour}", template="poster", template_values={"colour": "{prompt} {0} {colour!r}"}), OWN
    )
    assert filled.prompt == "a poster of {colour} in {prompt} {0} {colour!r}, {prompt} {0} {colour!r} frame"


def test_a_value_weighs_nothing_and_parts_nothing() -> None:
    value = r"Cola (zero sugar:1.9) [new] \ BREAK"
    filled = apply_template(params(template="poster", template_values={"colour": value}), OWN).prompt
    fragments = parse_weighted(filled)
    assert {fragment.weight for fragment in fragments} == {1.0}
    assert not any(fragment.new_chunk for fragment in fragments)
    assert "Cola (zero sugar:1.9) [new]" in "".join(fragment.text for fragment in fragments)


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ({"template": "product_foto", "template_values": {}}, "template", "product_photo"),
        ({"template": "product_photo", "template_values": {"product_name": "x"}}, "template_values", "must have style"),
        ({"template": "product_photo", "template_values": photo(colour="red")}, "template_values", "no others"),
        ({"template_values": {"colour": "red"}}, "template_values", "are for a template"),
    ],
)
async def test_what_a_template_does_not_have_is_refused(
    given: dict[str, Any], field: str, said: str, service: DiffusionService
) -> None:
    with pytest.raises(InvalidParameter, match=said) as refused:
        await service.prepare(params(**given))
    assert refused.value.field == field


@pytest.mark.parametrize(
    "values",
    [
        ["a"],
        {"a": 1},
        {"a": "x" * 1001},
        {"a": "\x00"},
        {"a\n": "x"},
        {str(index): "x" for index in range(MAX_VALUES + 1)},
        "text",
    ],
)
def test_values_that_are_no_texts_are_refused(values: Any) -> None:
    with pytest.raises(ValidationError):
        params(template="product_photo", template_values=values)


def test_the_configuration_adds_templates_and_replaces_built_in_ones(tmp_path: Any) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("extends: demo\ntemplates:\n  - {name: poster, prompt: 'a poster of {prompt}'}\n")
    (own,) = load_config(file).templates
    assert with_own([own.template()])["poster"].places == ()
    replaced = with_own([PromptTemplate("product_photo", "{product_name}")])
    assert replaced["product_photo"].prompt == "{product_name}"
    file.write_text("extends: demo\ntemplates:\n  - {name: a, prompt: x}\n  - {name: a, prompt: y}\n")
    with pytest.raises(ConfigError, match="'a' is taken"):
        load_config(file)

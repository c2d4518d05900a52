"""Generations over `/v1`: every field of OpenAI's means what it says, or is refused by its name."""

import base64
import io
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image

from deployments.engine.protocol.errors import (
    DoesNotFit,
    EngineStopped,
    GenerationFailed,
    NumericalFailure,
    Overloaded,
)
from serve_app.api.application import create_api
from serve_app.api.openai.fields import OWN_FIELDS, STEPS, our_fields
from serve_app.api.parsing import validation
from serve_app.config.sections import RETIRED_MODELS, OpenAIConfig
from serve_app.service import DiffusionService
from tests.serve_app.fakes import OTHER, TINY, FakeBackend, failing, http, refusing

DOOR = "/v1/images/generations"
CUP = {"prompt": "a red cup"}


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post(DOOR, json=CUP | fields)


def picture_of(answer: httpx.Response, index: int = 0) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][index]["b64_json"])))
    picture.load()
    return picture


async def test_a_prompt_alone_is_answered_in_openais_form(client: httpx.AsyncClient) -> None:
    answer = await ask(client)
    body = answer.json()
    assert answer.status_code == 200
    assert isinstance(body["created"], int)
    assert (body["background"], body["output_format"], body["size"]) == ("opaque", "png", "64x64")
    assert body["usage"]["total_tokens"] == 0
    assert (body["model"], body["cached"], "quality" in body) == ("tiny", False, False)
    assert picture_of(answer).size == (64, 64)


async def test_a_url_never_stands_beside_the_image(client: httpx.AsyncClient) -> None:
    """Open WebUI would fetch it instead, through a filter that lets no private host pass."""
    assert {name for each in (await ask(client, n=2)).json()["data"] for name in each} == {"b64_json", "seed"}


async def test_n_images_have_seeds_that_count_up(client: httpx.AsyncClient) -> None:
    assert [each["seed"] for each in (await ask(client, n=3, seed=7)).json()["data"]] == [7, 8, 9]


async def test_our_own_fields_go_along(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    ours = {"negative_prompt": "blur", "guidance_scale": 3.5, "num_inference_steps": 9, "clip_skip": 1, "seed": 5}
    answer = await ask(client, **ours, sampler="Euler a", style_preset="luxury", priority="low")
    params = backend.asked[0].params
    assert {name: getattr(params, name) for name in ours} == ours
    assert (params.sampler, params.priority) == ("euler_a", "low")
    assert answer.json()["data"][0]["revised_prompt"] == params.prompt != "a red cup"


@pytest.mark.parametrize(("quality", "steps"), [*STEPS.items(), ("auto", 50), (None, 50)])
async def test_a_quality_stands_for_steps(
    quality: str | None, steps: int, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = (await ask(client, quality=quality)).json()
    assert backend.asked[0].params.num_inference_steps == steps
    assert body.get("quality", "auto") in ("low", "medium", "high", "xhigh", "max", "auto")


async def test_steps_go_before_a_quality(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await ask(client, quality="max", num_inference_steps=3)
    assert backend.asked[0].params.num_inference_steps == 3


@pytest.mark.parametrize(("size", "made"), [("128x64", (128, 64)), ("auto", (64, 64)), (None, (64, 64))])
async def test_any_size_that_the_model_can(size: str | None, made: tuple[int, int], client: httpx.AsyncClient) -> None:
    answer = await ask(client, size=size)
    assert picture_of(answer).size == made
    assert answer.json()["size"] == f"{made[0]}x{made[1]}"


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
async def test_each_format_is_a_file_of_that_format(output_format: str, client: httpx.AsyncClient) -> None:
    answer = await ask(client, output_format=output_format)
    assert picture_of(answer).format == output_format.upper()
    assert answer.json()["output_format"] == output_format


async def test_a_compression_is_the_quality_of_the_file(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for quality in (1, 60, 100):
        await ask(client, output_format="jpeg", output_compression=quality)
    await ask(client, output_format="png", output_compression=100)
    await ask(client, output_format="webp")
    asked = [(request.params.output_format, request.params.output_quality) for request in backend.asked]
    assert asked == [("jpeg", 1), ("jpeg", 60), ("jpeg", 100), ("png", None), ("webp", None)]


@pytest.mark.parametrize("name", [None, "tiny", "maker/tiny", *RETIRED_MODELS])
async def test_names_in_clients_code_mean_the_default_model(name: str | None, client: httpx.AsyncClient) -> None:
    assert (await ask(client, model=name)).json()["model"] == "tiny"


async def test_a_served_model_goes_before_a_retired_name() -> None:
    named = replace(OTHER, aliases=("dall-e-3",))
    async with http(create_api(DiffusionService(FakeBackend(models=(TINY, named))))) as client:
        assert (await ask(client, model="dall-e-3")).json()["model"] == "other"


async def test_an_operator_can_switch_retired_names_off(service: DiffusionService) -> None:
    async with http(create_api(service, openai=OpenAIConfig(retired_models=()))) as client:
        answer = await ask(client, model="gpt-image-1")
        listed = (await client.get("/v1/models")).json()["data"]
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert answer.json()["error"]["param"] == "model"
    assert listed[0]["aliases"] == ["maker/tiny"]


@pytest.mark.parametrize(
    ("fields", "param", "code", "says"),
    [
        ({"prompt": None}, "prompt", "wrong_type", "must be a string"),
        ({"n": 0}, "n", "too_small", "at least 1"),
        ({"n": 11}, "n", "too_large", "at most 10"),
        ({"n": True}, "n", "wrong_type", "whole number"),
        ({"size": "100x64"}, "size", "invalid_value", "nearest: 96x64"),
        ({"size": "64"}, "size", "invalid_value", "auto or WIDTHxHEIGHT"),
        ({"size": "2048x2048"}, "size", "invalid_parameter", "at most 1048576 pixels"),
        ({"quality": "best"}, "quality", "unsupported_value", "'low'"),
        ({"response_format": "url"}, "response_format", "invalid_value", "must be b64_json"),
        ({"response_format": "png"}, "response_format", "invalid_value", "must be b64_json"),
        ({"background": "transparent"}, "background", "unsupported_value", "opaque"),
        ({"output_format": "gif"}, "output_format", "unsupported_value", "jpeg"),
        ({"output_compression": 50}, "output_compression", "invalid_value", "png"),
        ({"output_format": "webp", "output_compression": 101}, "output_compression", "too_large", "at most 100"),
        ({"style": "luxury"}, "style", "unsupported_value", "vivid"),
        ({"partial_images": 4}, "partial_images", "too_large", "at most 3"),
        ({"stream": "yes"}, "stream", "wrong_type", "true or false"),
        ({"svg": {"model": "x"}}, "svg", "unsupported_parameter", "leave it out"),
        ({"input_fidelity": "high"}, "input_fidelity", "unsupported_parameter", "leave it out"),
        ({"width": 64}, "width", "unknown_parameter", "did you mean size"),
        ({"model_name": "tiny"}, "model_name", "unknown_parameter", "did you mean model"),
        ({"sead": 1}, "sead", "unknown_parameter", "did you mean seed"),
        ({"strength": 0.5}, "strength", "unknown_parameter", "/v1/images/edits only"),
        ({"controls": []}, "controls", "unknown_parameter", "/v1/images/edits only"),
        ({"sampler": "nope"}, "sampler", "invalid_value", ""),
    ],
)
async def test_a_mistake_is_400_and_names_the_field_and_the_rule(
    fields: dict[str, Any], param: str, code: str, says: str, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    answer = await ask(client, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)
    assert says in error["message"]
    assert not backend.asked


async def test_all_mistakes_are_listed_at_once(client: httpx.AsyncClient) -> None:
    body = (await ask(client, n=0, seed="x", model="\x00", sead=1)).json()
    assert {each["pointer"] for each in body["errors"]} == {"#/sead", "#/n", "#/seed", "#/model"}
    assert "(and 3 more)" in body["detail"]


NULLS = ("complexity", "frame_count", "svg", "markup", "style", "user", "size", "n", "negative_prompt", "strength")


@pytest.mark.parametrize("name", [*NULLS, "controls"])
async def test_null_is_the_same_as_leaving_out(name: str, client: httpx.AsyncClient) -> None:
    assert (await ask(client, **{name: None})).status_code == 200


@pytest.mark.parametrize("name", ["model", "size", "quality", "style", "svg"])
async def test_what_clients_send_empty_is_the_same_as_leaving_out(name: str, client: httpx.AsyncClient) -> None:
    assert (await ask(client, **{name: ""})).status_code == 200


async def test_the_nearest_name_is_looked_for_as_often_as_it_is_shown(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def look(name: str, *_: Any, **__: Any) -> list[str]:
        looked.append(name)
        return []

    monkeypatch.setattr(validation, "get_close_matches", look)
    answer = await ask(client, **{f"guidance_intervl{i}": 1 for i in range(250)})
    assert answer.status_code == 400
    assert "(and 249 more)" in answer.json()["detail"]
    assert len(looked) == len(answer.json()["errors"]) == validation.MAX_FAULTS


@pytest.mark.parametrize(("size", "made"), [("1536x1024", (80, 64)), ("1024x1792", (64, 88))])
async def test_a_size_that_clients_offer_comes_in_its_shape_where_the_model_cannot(
    size: str, made: tuple[int, int], client: httpx.AsyncClient
) -> None:
    answer = await ask(client, size=size)
    assert answer.json()["size"] == "x".join(map(str, made))
    assert picture_of(answer).size == made


async def test_the_default_model_is_the_one_that_generates() -> None:
    inpainting = replace(TINY, name="inpainting", aliases=(), inpaints_only=True)
    async with http(create_api(DiffusionService(FakeBackend(models=(inpainting, OTHER))))) as client:
        assert (await ask(client, model="dall-e-3")).json()["model"] == "other"
        assert (await client.get("/v1/models/dall-e-3")).json()["root"] == "other"
        first, second = (await client.get("/v1/models")).json()["data"]
    assert (first["id"], second["id"]) == ("other", "inpainting")
    assert set(RETIRED_MODELS) <= set(first["aliases"])


async def test_the_callers_own_user_comes_back(client: httpx.AsyncClient) -> None:
    assert (await ask(client, user="u-1")).json()["safety_identifier"] == "u-1"
    assert (await ask(client, user="u-1", safety_identifier="s-1")).json()["safety_identifier"] == "s-1"


@pytest.mark.parametrize(
    ("error", "status", "advice"),
    [
        (Overloaded("full", 7.2), 503, "true"),
        (EngineStopped("gone"), 503, "true"),
        (GenerationFailed("no"), 500, "false"),
        (NumericalFailure("black"), 500, "false"),
        (DoesNotFit("too large"), 400, None),
    ],
)
async def test_only_what_may_succeed_is_to_be_repeated(
    error: Exception, status: int, advice: str | None, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = refusing(error)
    answer = await ask(client)
    assert (answer.status_code, answer.headers.get("x-should-retry")) == (status, advice)
    assert ("retry-after" in answer.headers) == (advice == "true")


async def test_images_that_failed_are_told_beside_the_others(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = failing(NumericalFailure("black"), 1)
    body = (await ask(client, n=3)).json()
    assert len(body["data"]) == 2
    assert [(each["index"], each["code"]) for each in body["failures"]] == [(1, "numerical_failure")]


async def test_an_endpoint_that_openai_retired_is_a_404_that_clients_can_read(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/images/variations", files={"image": b"x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_models_are_listed_as_clients_expect_them(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [each["id"] for each in body["data"]] == ["tiny", "other"]
    assert all(each["object"] == "model" and isinstance(each["created"], int) for each in body["data"])
    assert set(body["data"][0]["aliases"]) == {"maker/tiny", *RETIRED_MODELS}


@pytest.mark.parametrize(
    ("name", "root"), [("other", "other"), ("maker/tiny", "tiny"), ("maker%2Ftiny", "tiny"), ("dall-e-2", "tiny")]
)
async def test_a_model_is_found_by_each_of_its_names(name: str, root: str, client: httpx.AsyncClient) -> None:
    body = (await client.get(f"/v1/models/{name}")).json()
    assert (body["id"], body["root"]) == (name.replace("%2F", "/"), root)


@pytest.mark.parametrize("name", ["nope", "a/b", "x" * 300])
async def test_a_name_that_no_model_has_is_404(name: str, client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_documentation_describes_every_field(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for door, kind, edits in ((DOOR, "application/json", False), ("/v1/images/edits", "multipart/form-data", True)):
        operation = paths[door]["post"]
        properties = operation["requestBody"]["content"][kind]["schema"]["properties"]
        assert {"prompt", *OWN_FIELDS, *our_fields(edits=edits)} <= set(properties)
        assert all(field.get("description") or field.get("items") for field in properties.values())
        assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
        assert "422" not in operation["responses"]
    example = paths[DOOR]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert (await client.post(DOOR, json=example)).status_code == 200


async def test_an_alias_with_slashes_is_found_however_they_are_written(backend: FakeBackend) -> None:
    deep = replace(TINY, aliases=("hub.example/maker/tiny",))
    backend.models = (deep,)
    async with http(create_api(DiffusionService(backend))) as client:
        for written in ("hub.example/maker/tiny", "hub.example%2Fmaker%2Ftiny"):
            answer = await client.get(f"/v1/models/{written}")
            assert (answer.status_code, answer.json()["root"]) == (200, "tiny")
        assert (await client.get("/v1/models/hub.example/maker/other")).status_code == 404

"""`huggingface_hub`'s own client, unmodified and over real HTTP."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.inference._generated.types.image_to_image import ImageToImageTargetSize
from PIL import Image

from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.params import GenerationParams
from serve_app.api.application import create_api
from serve_app.config.secret import Secret
from serve_app.config.server import load_config
from serve_app.gateway.api_keys import Keyring, generate_key, hash_of
from serve_app.gateway.setup import Gateway
from serve_app.service import DiffusionService
from tests.serve_app.fakes import FakeBackend, refusing
from tests.serve_app.servers import http_server

CUP = "a red cup"


@pytest.fixture
def url(service: DiffusionService) -> Iterator[str]:
    with http_server(create_api(service)) as url:
        yield url


@pytest.fixture
def client(url: str) -> InferenceClient:
    return InferenceClient(model=f"{url}/hf/tiny", token="any", timeout=20)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    Image.new("RGB", (64, 96), "teal").save(file)
    return file


def test_the_page_about_it_asks_for_a_model_that_the_demo_serves() -> None:
    page = (Path(__file__).parents[4] / "docs" / "huggingface.md").read_text()
    demo = load_config("demo")
    hosted = [spec for deployment in demo.deployments for spec in demo.specs_of(deployment)]
    names = re.findall(r"8000/hf/([^\"\s`]+)", page)
    assert names
    assert [name for name in names if not any(spec.has_name(name) for spec in hosted)] == []


def test_a_prompt_becomes_an_image(client: InferenceClient, backend: FakeBackend) -> None:
    made = client.text_to_image(
        CUP,
        negative_prompt="blur",
        width=128,
        height=64,
        num_inference_steps=9,
        guidance_scale=4.5,
        scheduler="EulerDiscreteScheduler",
        seed=7,
        extra_body={"clip_skip": 1},
    )
    assert made.size == (128, 64)
    params = backend.asked[0].params
    assert (params.prompt, params.negative_prompt, params.num_inference_steps) == (CUP, "blur", 9)
    assert (params.guidance_scale, params.sampler, params.seed, params.clip_skip) == (4.5, "euler", 7, 1)


def test_a_prompt_may_begin_like_an_address_of_data(client: InferenceClient, backend: FakeBackend) -> None:
    client.text_to_image("data: a chart")
    assert backend.asked[0].params.prompt == "data: a chart"


def test_the_models_own_defaults_stand_where_nothing_is_said(client: InferenceClient, backend: FakeBackend) -> None:
    assert client.text_to_image(CUP).size == (64, 64)
    assert backend.asked[0].params.sampler == "ddim"


def test_a_model_may_have_a_slash_in_its_name(url: str, backend: FakeBackend) -> None:
    InferenceClient(model=f"{url}/hf/maker/tiny").text_to_image(CUP)
    assert backend.asked[0].params.model_name == "tiny"


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_picture_is_changed_towards_a_prompt(
    as_bytes: bool, photo: Path, client: InferenceClient, backend: FakeBackend
) -> None:
    image = photo.read_bytes() if as_bytes else photo
    size = ImageToImageTargetSize(width=64, height=96)
    made = client.image_to_image(image, prompt=CUP, strength=0.4, seed=3, target_size=size)
    assert made.size == (64, 96)
    params, uploads = backend.asked[0].params, backend.asked[0].uploads
    assert (params.prompt, params.strength, params.seed) == (CUP, 0.4, 3)
    assert uploads is not None
    assert uploads.image == photo.read_bytes()
    assert uploads.task == "image-to-image"


@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("parameters", [{}, {"num_inference_steps": 5}])
def test_a_bare_picture_is_changed_without_a_prompt(
    parameters: dict[str, Any], as_bytes: bool, photo: Path, client: InferenceClient, backend: FakeBackend
) -> None:
    client.image_to_image(photo.read_bytes() if as_bytes else photo, **parameters)
    assert backend.asked[0].params.prompt == ""
    assert backend.asked[0].uploads is not None
    assert backend.asked[0].uploads.image == photo.read_bytes()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_inference_steps": 10_000}, "at most 150"),
        ({"extra_body": {"nonsense": 1}}, "nonsense is not a field"),
        ({"extra_body": {"num_images": 3}}, "num_images"),
    ],
)
def test_what_is_wrong_is_said(asked: dict[str, Any], said: str, client: InferenceClient, backend: FakeBackend) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        client.text_to_image(CUP, **asked)
    assert refused.value.response.status_code == 422
    assert said in refused.value.response.text
    assert not backend.asked


PICTURE = "iVBORw0KGgo="


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"inputs": "\ud800"}, "inputs"),
        ({"inputs": "word " * 2000}, "inputs"),
        ({"inputs": "(" * 9000}, "inputs"),
        ({"inputs": CUP, "parameters": {"width": 100}}, "parameters/width"),
        ({"inputs": CUP, "parameters": {"target_size": {"width": 100}}}, "parameters/target_size/width"),
        ({"inputs": CUP, "parameters": {"target_size": {"depth": 100}}}, "parameters/target_size"),
        ({"inputs": CUP, "parameters": {"scheduler": "Nothing"}}, "parameters/scheduler"),
        ({"inputs": CUP, "parameters": {"sampler": "Nothing"}}, "parameters/sampler"),
        ({"inputs": CUP, "parameters": {"style_preset": 3}}, "parameters/style_preset"),
        ({"inputs": CUP, "parameters": {"strength": 0.5}}, "parameters/strength"),
        ({"inputs": CUP, "parameters": {"nonsense": 1}}, "parameters/nonsense"),
        ({"inputs": CUP, "parameters": {"ad_format": "nothing"}}, "parameters/ad_format"),
        ({"inputs": CUP, "parameters": {"hires": {"scale": 9}}}, "parameters/hires/scale"),
        ({"inputs": CUP, "parameters": []}, "parameters"),
        ({"inputs": PICTURE, "parameters": {"prompt": 3}}, "parameters/prompt"),
        ({"inputs": PICTURE, "parameters": {"prompt": False}}, "parameters/prompt"),
        ({"inputs": PICTURE, "parameters": {"prompt": CUP}}, "inputs"),
    ],
)
def test_a_fault_is_where_the_client_has_put_the_field(
    body: dict[str, Any], place: str, url: str, backend: FakeBackend
) -> None:
    answers = [
        httpx.post(f"{url}/hf/tiny", content=json.dumps(body), headers={"Content-Type": "application/json", **key})
        for key in ({}, {"Idempotency-Key": "k"}, {"Idempotency-Key": "k"})
    ]
    for answer in answers:
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["param"] == place
        assert answer.json()["errors"][0]["pointer"] == f"#/{place}"
    assert not backend.asked


def test_the_documentation_has_every_parameter_that_is_taken_and_no_other(url: str, backend: FakeBackend) -> None:
    described = httpx.get(f"{url}/openapi.json").json()["paths"]["/hf/{model}"]["post"]["requestBody"]["content"]
    parameters = described["application/json"]["schema"]["properties"]["parameters"]["properties"]
    assert {"prompt", "guidance_scale", "scheduler", "strength", "target_size", "output_format"} <= set(parameters)
    known = {*GenerationParams.model_fields, "scheduler", "target_size"}
    assert set(parameters) <= known
    for name in known:
        # Null says nothing, but only of a parameter that there is.
        answer = httpx.post(f"{url}/hf/tiny", json={"inputs": CUP, "parameters": {name: None}})
        assert answer.status_code == (422 if name == "prompt" else 200), name
    for name in known - set(parameters):
        value = {"controls": [], "mask_fill": "noise", "model_name": "tiny"}.get(name, 7)
        answer = httpx.post(f"{url}/hf/tiny", json={"inputs": CUP, "parameters": {name: value}})
        assert answer.status_code == 422, name


def test_a_model_that_is_not_there_and_a_full_queue_are_told_apart(
    url: str, client: InferenceClient, backend: FakeBackend
) -> None:
    with pytest.raises(HfHubHTTPError) as unknown:
        InferenceClient(model=f"{url}/hf/nowhere").text_to_image(CUP)
    assert unknown.value.response.status_code == 404
    backend.script = refusing(Overloaded("full", retry_after=3.0))
    with pytest.raises(HfHubHTTPError) as full:
        client.text_to_image(CUP)
    assert full.value.response.status_code == 503
    assert full.value.response.headers["retry-after"] == "3"


def test_a_key_is_the_clients_token(service: DiffusionService, tmp_path: Path) -> None:
    key = generate_key()
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump([{"id": "maker", "hash": hash_of(key), "tenant": "acme"}]))
    with http_server(create_api(service, gateway=Gateway(keys=Keyring(Secret(file=file))))) as url:
        assert InferenceClient(model=f"{url}/hf/tiny", token=key).text_to_image(CUP).size == (64, 64)
        with pytest.raises(HfHubHTTPError) as refused:
            InferenceClient(model=f"{url}/hf/tiny", token="wrong").text_to_image(CUP)
        assert refused.value.response.status_code == 401


def test_the_format_is_what_the_accept_header_says(url: str) -> None:
    answer = httpx.post(f"{url}/hf/tiny", json={"inputs": CUP}, headers={"Accept": "image/webp"})
    assert answer.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(answer.content)) as made:
        assert made.format == "WEBP"
    refused = httpx.post(f"{url}/hf/tiny", json={"inputs": CUP}, headers={"Accept": "text/html"})
    assert refused.status_code == 406

"""Addresses instead of images, for OpenAI's clients that ask for them."""

import asyncio
import io
import re
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

from serve_app.api.application import create_api
from serve_app.config.errors import ConfigError
from serve_app.config.sections import ResultUrlsConfig
from serve_app.config.server import load_config
from serve_app.service import DiffusionService
from serve_app.store.result_files import ResultFile, ResultFiles
from tests.serve_app.fakes import FakeBackend
from tests.serve_app.servers import http_server

MEGABYTE = 2**20


@pytest.fixture
def url(service: DiffusionService) -> Iterator[str]:
    with http_server(create_api(service, result_files=ResultFiles(ResultUrlsConfig(), None))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_an_answer_has_addresses_and_no_images(client: OpenAI, url: str) -> None:
    made = client.images.generate(prompt="a red cup", n=2, size="128x64", response_format="url", output_format="webp")
    assert made.data is not None
    assert [image.b64_json for image in made.data] == [None, None]
    for image in made.data:
        assert image.url is not None
        assert image.url.startswith(url)
        answer = httpx.get(image.url)
        assert answer.headers["content-type"] == "image/webp"
        assert answer.headers["x-content-type-options"] == "nosniff"
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert picture.size == (128, 64)


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_an_answer_is_kept_no_longer_than_its_address_leads_there(output_format: str, client: OpenAI, url: str) -> None:
    made = client.images.generate(prompt="a red cup", response_format="url", output_format=output_format)  # type: ignore[call-overload]
    address = httpx.URL(made.data[0].url)
    answer = httpx.get(address)
    found = re.fullmatch(r"private, max-age=(\d+), immutable", answer.headers["cache-control"])
    assert found is not None
    expires = int(address.params["expires"])
    assert int(found[1]) <= expires - parsedate_to_datetime(answer.headers["date"]).timestamp() + 1
    described = httpx.get(f"{url}/openapi.json").json()["paths"]["/results/{file_id}"]["get"]["responses"]["200"]
    assert answer.headers["content-type"] in described["content"]


def test_an_edit_has_addresses_too(client: OpenAI) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, "PNG")
    made = client.images.edit(image=buffer.getvalue(), prompt="a red cup", response_format="url")
    assert made.data is not None
    assert made.data[0].url is not None
    assert httpx.get(made.data[0].url).status_code == 200


def test_an_address_that_was_not_given_out_is_refused(client: OpenAI, url: str) -> None:
    made = client.images.generate(prompt="a red cup", response_format="url")
    assert made.data is not None
    assert made.data[0].url is not None
    assert httpx.get(made.data[0].url + "x").status_code == 403
    assert httpx.get(f"{url}/results/nothing").status_code == 422
    assert httpx.get(f"{url}/results/..%2f..%2fetc?expires=9999999999&signature=x").status_code in (404, 422)


def test_addresses_begin_where_the_operator_says(service: DiffusionService) -> None:
    config = ResultUrlsConfig(public_url="https://images.example.com/a/")
    with (
        http_server(create_api(service, result_files=ResultFiles(config, None))) as url,
        OpenAI(base_url=f"{url}/v1", api_key="any") as client,
    ):
        made = client.images.generate(prompt="a red cup", response_format="url")
    assert made.data is not None
    assert str(made.data[0].url).startswith("https://images.example.com/a/results/")


def test_a_stream_and_a_server_that_keeps_nothing_have_no_addresses(
    client: OpenAI, service: DiffusionService, backend: FakeBackend
) -> None:
    with pytest.raises(openai.BadRequestError, match="in a stream"):
        client.images.generate(prompt="a red cup", response_format="url", stream=True)
    with (
        http_server(create_api(service)) as url,
        OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as plain,
        pytest.raises(openai.BadRequestError, match="keeps no images"),
    ):
        plain.images.generate(prompt="a red cup", response_format="url")
    assert not backend.asked


def test_several_ingresses_need_redis_for_it(tmp_path: object) -> None:
    file = tmp_path / "own.yaml"  # type: ignore[operator]
    file.write_text("extends: demo\nresult_urls: {}\ningress: {replicas: 2}\n")
    with pytest.raises(ConfigError, match="need `redis`"):
        load_config(file)


def test_what_certainly_finds_no_room_is_refused_before_it_is_made(
    service: DiffusionService, backend: FakeBackend
) -> None:
    files = ResultFiles(ResultUrlsConfig(max_bytes=MEGABYTE), None)
    asyncio.run(files.put(ResultFile(bytes(MEGABYTE - 150), "png")))
    with (
        http_server(create_api(service, result_files=files)) as url,
        OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError, match="no room"):
            client.images.generate(prompt="a red cup", n=2, response_format="url")
        assert not backend.asked
        client.images.generate(prompt="a red cup", n=2)
    assert len(backend.asked) == 1

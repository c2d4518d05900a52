"""OpenAI's own client, unmodified and over real HTTP: what it sends is understood, and what it reads is there."""

import asyncio
import base64
import io
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI
from openai.types import ImagesResponse
from PIL import Image

from deployments.engine.protocol.errors import EngineStopped, GenerationFailed, NumericalFailure, Overloaded
from deployments.engine.protocol.events import Accepted, Failed, Finished, Preview, Progress
from deployments.engine.protocol.request import Request
from serve_app.api.application import create_api
from serve_app.cache.result_cache import ResultCache
from serve_app.config.secret import Secret
from serve_app.config.sections import CacheConfig, Limits, LimitsConfig
from serve_app.gateway.api_keys import Keyring, generate_key, hash_of
from serve_app.gateway.rate_limits import RateLimits
from serve_app.gateway.setup import Gateway
from serve_app.service import DiffusionService
from tests.serve_app.fakes import TIMINGS, FakeBackend, Step, failing, image, refusing, slow, success
from tests.serve_app.servers import http_server

KEY = generate_key()
CUP = "a red cup"


def client_of(url: str, **options: Any) -> OpenAI:
    given: dict[str, Any] = {"api_key": "any", "max_retries": 0, "timeout": 20} | options
    return OpenAI(base_url=f"{url}/v1", **given)


@pytest.fixture
def service(backend: FakeBackend) -> DiffusionService:
    return DiffusionService(backend, cache=ResultCache(CacheConfig()))


@pytest.fixture
def url(service: DiffusionService) -> Iterator[str]:
    with http_server(create_api(service)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with client_of(url) as client:
        yield client


def png(colour: Any = "teal", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (64, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


def size_of(b64_json: str | None) -> tuple[int, int]:
    assert b64_json is not None
    with Image.open(io.BytesIO(base64.b64decode(b64_json))) as picture:
        return picture.size


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), "gray").save(buffer, "JPEG")
    return buffer.getvalue()


def with_previews(request: Request) -> list[Step]:
    """Two previews of each image, and the images in reverse order."""
    count = request.params.num_images
    previews = [Preview(request.id, index, step, jpeg()) for step in (1, 2) for index in range(count)]
    done = [image(request, index) for index in reversed(range(count))]
    return [
        Accepted(request.id, 0, steps=2),
        Progress(request.id, 1, 2),
        *previews,
        *done,
        Finished(request.id, TIMINGS),
    ]


def eventually(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_generation_is_what_the_client_declares(client: OpenAI, backend: FakeBackend) -> None:
    made = client.images.generate(
        prompt=CUP,
        model="gpt-image-1",
        n=2,
        size="128x64",
        quality="low",
        background="opaque",
        output_format="webp",
        output_compression=80,
        moderation="low",
        user="u-1",
        extra_body={"seed": 7, "negative_prompt": "blur", "guidance_scale": 3, "sampler": "ddim"},
    )
    ImagesResponse.model_validate(made.to_dict())
    assert made.data is not None
    assert [size_of(each.b64_json) for each in made.data] == [(128, 64)] * 2
    assert [each.url for each in made.data] == [None, None]
    assert (made.size, made.quality, made.output_format, made.background) == ("128x64", "low", "webp", "opaque")
    assert made.to_dict()["model"] == "tiny"
    params = backend.asked[0].params
    assert (params.seed, params.negative_prompt, params.guidance_scale, params.sampler) == (7, "blur", 3, "ddim")


def test_a_prompt_is_enough(client: OpenAI) -> None:
    made = client.images.generate(prompt=CUP)
    assert made.data is not None
    assert size_of(made.data[0].b64_json) == (64, 64)


def test_edits_take_one_picture_or_a_list_and_a_mask(client: OpenAI, backend: FakeBackend) -> None:
    client.images.edit(image=png(), prompt=CUP, extra_body={"strength": 0.3, "seed": 3})
    client.images.edit(image=[png()], mask=png((0, 0, 0, 0), "RGBA"), prompt=CUP, n=2, size="64x64", quality="high")
    controls = [{"type": "canny", "scale": 0.5}, {"type": "depth", "scale": 1}]
    client.images.edit(image=[png("white"), png("gray")], prompt=CUP, extra_body={"controls": controls})
    changed, repainted, followed = backend.asked
    assert [each.uploads and each.uploads.task for each in backend.asked] == [
        "image-to-image",
        "inpaint",
        "text-to-image",
    ]
    assert (changed.params.strength, changed.params.seed, repainted.params.num_images) == (0.3, 3, 2)
    assert [(each.type, each.scale) for each in followed.params.controls] == [("canny", 0.5), ("depth", 1.0)]


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "other"]
    assert client.models.retrieve("maker/tiny").to_dict()["root"] == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_a_stream_has_partial_images_and_each_image_in_order(client: OpenAI, backend: FakeBackend) -> None:
    backend.script = with_previews
    with client.images.generate(prompt=CUP, n=2, stream=True, partial_images=2, extra_body={"seed": 5}) as stream:
        events = list(stream)
    for event in events:
        type(event).model_validate(event.to_dict())
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    assert [(event.partial_image_index, event.to_dict()["index"]) for event in partial] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert {(event.output_format, event.size, size_of(event.b64_json)) for event in partial} == {
        ("jpeg", "64x32", (64, 32))
    }
    done = [event for event in events if event.type == "image_generation.completed"]
    assert [event.to_dict()["seed"] for event in done] == [5, 6]
    assert [size_of(event.b64_json) for event in done] == [(64, 64)] * 2
    assert done[0].usage.total_tokens == 0
    assert backend.asked[0].previews == 2


def test_an_edit_streams_under_its_own_names(client: OpenAI, backend: FakeBackend) -> None:
    backend.script = with_previews
    with client.images.edit(image=png(), prompt=CUP, stream=True, partial_images=1) as stream:
        names = [event.type for event in stream]
    assert names == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]


async def test_the_async_client_gets_the_same(url: str, backend: FakeBackend) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        made = await asyncio.gather(*(client.images.generate(prompt=f"cup {i}") for i in range(5)))
        backend.script = with_previews
        stream = await client.images.generate(prompt=CUP, stream=True)
        names = [event.type async for event in stream]
    assert all(each.data and size_of(each.data[0].b64_json) == (64, 64) for each in made)
    assert names == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]


def test_a_mistake_is_a_bad_request_that_names_its_field(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt=CUP, size="100x64")
    error = caught.value
    assert (error.param, error.code, error.type) == ("size", "invalid_value", "invalid_request_error")
    assert "nearest: 96x64" in str(error)
    assert error.request_id
    with pytest.raises(openai.BadRequestError, match="keeps no images"):
        client.images.generate(prompt=CUP, response_format="url")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt=CUP, model="nope", stream=True)
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_tried_again_when_there_may_be_room(stream: bool, url: str, backend: FakeBackend) -> None:
    tries: list[float] = []

    def full_at_first(request: Request) -> list[Step]:
        tries.append(time.monotonic())
        return [Failed(request.id, Overloaded("full", 1.0))] if len(tries) == 1 else success(request)

    backend.script = full_at_first
    with client_of(url, max_retries=2) as client:
        made = client.images.generate(prompt=CUP, stream=stream)
        assert len(list(made)) if stream else made
    assert len(tries) == 2
    assert tries[1] - tries[0] >= 1.0


@pytest.mark.parametrize(
    ("error", "tries"), [(GenerationFailed("no"), 1), (NumericalFailure("black"), 1), (EngineStopped("gone"), 2)]
)
def test_what_cannot_succeed_is_not_tried_again(error: Exception, tries: int, url: str, backend: FakeBackend) -> None:
    backend.script = refusing(error)
    with client_of(url, max_retries=1) as client, pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt=CUP)
    assert len(backend.asked) == tries
    assert caught.value.code == getattr(error, "code", None)


def test_a_failure_within_a_stream_is_raised_after_the_images_that_could_be_made(
    client: OpenAI, backend: FakeBackend
) -> None:
    backend.script = failing(NumericalFailure("black"), 0)
    seen: list[str] = []
    with (
        client.images.generate(prompt=CUP, n=3, stream=True) as stream,
        pytest.raises(openai.APIError, match="black") as caught,
    ):
        seen.extend(event.type for event in stream)
    assert seen == ["image_generation.completed"] * 2
    assert caught.value.code == "numerical_failure"


def test_a_lost_engine_ends_a_stream_with_an_error(client: OpenAI, backend: FakeBackend) -> None:
    backend.script = lambda request: [*slow(request)[:2], Failed(request.id, EngineStopped("gone"))]
    with client.images.generate(prompt=CUP, stream=True) as stream, pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "engine_stopped"


@pytest.mark.parametrize("tells", [True, False])
def test_images_that_wait_for_one_before_them_come_before_the_error_that_ends_the_stream(
    tells: bool, client: OpenAI, backend: FakeBackend
) -> None:
    def script(request: Request) -> list[Step]:
        last = [Failed(request.id, EngineStopped("gone"))] if tells else []
        return [Accepted(request.id, 0, steps=2), image(request, 1), image(request, 2), *last]

    backend.script = script
    seen: list[object] = []
    with (
        client.images.generate(prompt=CUP, n=3, stream=True) as stream,
        pytest.raises(openai.APIError) as caught,
    ):
        seen.extend(event.to_dict()["index"] for event in stream)
    assert seen == [1, 2]
    assert caught.value.code == "engine_stopped"


def test_a_client_that_times_out_frees_its_place(url: str, backend: FakeBackend) -> None:
    backend.script = slow
    with client_of(url, timeout=0.5) as client, pytest.raises(openai.APITimeoutError):
        client.images.generate(prompt=CUP)
    eventually(lambda: backend.running == 0)
    assert len(backend.cancelled) == 1


def test_a_client_that_leaves_a_stream_frees_its_place(client: OpenAI, backend: FakeBackend) -> None:
    backend.script = lambda request: [*with_previews(request)[:3], 1e6]
    with client.images.generate(prompt=CUP, stream=True, partial_images=1) as stream:
        next(iter(stream))
        eventually(lambda: backend.running == 1)
    eventually(lambda: backend.running == 0)
    assert len(backend.cancelled) == 1


def test_the_same_seed_is_answered_from_the_cache(client: OpenAI, backend: FakeBackend) -> None:
    answers = [
        client.images.with_raw_response.generate(prompt=CUP, extra_body={"seed": 1}, stream=False) for _ in range(2)
    ]
    assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "HIT"]
    assert [answer.parse().to_dict()["cached"] for answer in answers] == [False, True]
    with client.images.generate(prompt=CUP, stream=True, extra_body={"seed": 1}) as stream:
        assert [event.to_dict()["cached"] for event in stream] == [True]
    # Another compression is another answer, of the same images.
    client.images.generate(prompt=CUP, output_format="png", output_compression=100, extra_body={"seed": 1})
    assert len(backend.asked) == 1


def test_the_same_idempotency_key_runs_once(client: OpenAI, backend: FakeBackend) -> None:
    same = {"extra_headers": {"Idempotency-Key": "k-1"}}
    first, again = (client.images.generate(prompt=CUP, **same) for _ in range(2))  # type: ignore[call-overload]
    assert first == again
    assert len(backend.asked) == 1
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt=CUP, n=2, **same)  # type: ignore[call-overload]
    assert caught.value.code == "idempotency_key_reused"
    with pytest.raises(openai.BadRequestError, match="stream"):
        client.images.generate(prompt=CUP, stream=True, **same)  # type: ignore[call-overload]


def test_a_refusal_that_is_kept_for_its_key_stays_the_same_error(client: OpenAI) -> None:
    same = {"model": "nope", "size": "2048x2048", "extra_headers": {"Idempotency-Key": "k-2"}}
    too_large = same | {"model": "tiny"}
    for fields, kind in ((too_large, openai.BadRequestError), (too_large, openai.BadRequestError)):
        with pytest.raises(kind) as caught:
            client.images.generate(prompt=CUP, **fields)  # type: ignore[call-overload]
        assert caught.value.param == "size"


@pytest.fixture
def guarded(service: DiffusionService, tmp_path: Path) -> Iterator[str]:
    """A server that asks for keys, and lets each ask twice a minute."""
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump([{"id": "maker", "hash": hash_of(KEY), "tenant": "acme"}]))
    limits = RateLimits(
        LimitsConfig(per_key=Limits(requests_per_minute=2, max_cost=5)), None, service.gateway_counts, time.time
    )
    with http_server(create_api(service, gateway=Gateway(keys=Keyring(Secret(file=file)), limits=limits))) as url:
        yield url


def test_the_clients_key_is_the_servers(guarded: str, backend: FakeBackend) -> None:
    with client_of(guarded, api_key="wrong") as stranger, pytest.raises(openai.AuthenticationError) as caught:
        stranger.images.generate(prompt=CUP)
    assert caught.value.code == "invalid_api_key"
    with client_of(guarded, api_key=KEY) as client:
        assert client.models.list().data
        client.images.generate(prompt=CUP)
    assert backend.asked[0].tenant == "acme"


def test_limits_hold_and_say_when_to_come_back(guarded: str, backend: FakeBackend) -> None:
    with client_of(guarded, api_key=KEY) as client:
        with pytest.raises(openai.BadRequestError) as costly:
            client.images.generate(prompt=CUP, size="1024x1024", quality="max")
        assert costly.value.code == "too_costly"
        client.images.generate(prompt=CUP)
        with pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(prompt=CUP)
    headers = caught.value.response.headers
    assert (caught.value.code, headers["x-should-retry"]) == ("rate_limit_exceeded", "true")
    assert 0 < int(headers["retry-after"]) <= 120
    assert len(backend.asked) == 1


def test_requests_are_counted_and_logged_like_all_others(
    client: OpenAI, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="serve_app.api.middleware.access_log")
    client.images.generate(prompt=CUP)
    stats = httpx.get(f"{url}/ads/v2/diffusion/stats").json()
    assert stats["finished"] == 1

    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if getattr(record, "route", None) == "/v1/images/generations"]

    # A line is written when the request has ended, which the client does not wait for.
    eventually(lambda: len(lines()) > 0)
    assert [(line.__dict__["model"], line.__dict__["outcome"]) for line in lines()] == [("tiny", "finished")]
    assert CUP not in caplog.text

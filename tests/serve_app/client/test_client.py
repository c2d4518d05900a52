"""The client, against the real API without a socket."""

import asyncio
import io
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from deployments.engine.protocol.errors import NumericalFailure, Overloaded
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.settings import ControlSettings
from deployments.engine.protocol.spec import UpscalerSpec
from serve_app.api.application import create_api
from serve_app.client import BASE, DarkroomClient, DarkroomError
from serve_app.client.messages import Listed
from serve_app.config.callbacks import CallbacksConfig
from serve_app.config.secret import Secret
from serve_app.config.sections import JobsConfig
from serve_app.gateway.api_keys import Key, Keyring, generate_key, hash_of
from serve_app.gateway.setup import Gateway
from serve_app.service import DiffusionService
from tests.serve_app.fakes import FakeBackend, failing, http, refusing, slow, success
from tests.serve_app.servers import http_server


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = picture()


class Through(httpx.BaseTransport):
    """The ASGI application, for a client that does not know asyncio."""

    def __init__(self, service: DiffusionService, keys: Keyring | None = None) -> None:
        self.app = create_api(service, gateway=Gateway(keys=keys))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run(self._send(request))

    async def _send(self, request: httpx.Request) -> httpx.Response:
        async with http(self.app) as client:
            content = request.read()
            response = await client.request(request.method, request.url, content=content, headers=request.headers)
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that clients would have waited."""
    waited: list[float] = []
    monkeypatch.setattr("serve_app.client.client.sleep", waited.append)
    return waited


@pytest.fixture
def darkroom(service: DiffusionService) -> DarkroomClient:
    return DarkroomClient("http://test", transport=Through(service))


def test_generate_gives_the_images(darkroom: DarkroomClient) -> None:
    with darkroom:
        images = darkroom.generate(prompt="a red cup", num_images=2, seed=3)
    assert [(image.index, image.seed) for image in images] == [(0, 3), (1, 4)]
    assert images[0].picture().size == (64, 64)


def test_what_was_not_set_is_left_to_the_server(darkroom: DarkroomClient, backend: FakeBackend) -> None:
    darkroom.generate(GenerationParams(prompt="a red cup", model_name="other"))
    assert backend.asked[0].params.width == 128


def test_a_stream_gives_events_up_to_done(darkroom: DarkroomClient) -> None:
    names = [event.name for event in darkroom.stream(prompt="a red cup", previews=1)]
    assert names == ["progress", "progress", "progress", "image", "done"]


CANNY = ControlSettings(type="canny", scale=0.5)


@pytest.mark.parametrize(
    ("uploads", "more", "task"),
    [
        (Uploads(image=PICTURE), {"strength": 0.4}, "image-to-image"),
        (Uploads(image=PICTURE, mask_type="border"), {"mask_feather": 3}, "inpaint"),
        (Uploads(image=PICTURE, mask=PICTURE, fit="pad"), {}, "inpaint"),
        (Uploads(hints=(PICTURE,), preprocess=True), {"controls": (CANNY,)}, "text-to-image"),
        (Uploads(image=PICTURE, hints=(PICTURE,)), {"controls": (CANNY,), "strength": 0.5}, "image-to-image"),
    ],
)
def test_pictures_go_along_as_they_are(
    uploads: Uploads, more: dict[str, Any], task: str, darkroom: DarkroomClient, backend: FakeBackend
) -> None:
    params = GenerationParams(prompt="a red cup", **more)
    assert len(darkroom.generate(params, uploads=uploads)) == 1
    assert [event.name for event in darkroom.stream(params, uploads=uploads)][-1] == "done"
    for request in backend.asked:
        assert request.uploads is not None
        assert replace(request.uploads, image_field="image") == uploads
        assert request.uploads.task == task
        assert {name: getattr(request.params, name) for name in more} == more


def test_a_controlnet_can_inpaint_by_a_masks_name(darkroom: DarkroomClient, backend: FakeBackend) -> None:
    uploads = Uploads(image=PICTURE, mask_type="center", hints=(PICTURE,))
    assert len(darkroom.generate(prompt="a red cup", controls=[CANNY.model_dump()], uploads=uploads)) == 1
    assert backend.asked[0].uploads is not None
    assert backend.asked[0].uploads.task == "inpaint"


@pytest.mark.parametrize("uploads", [Uploads(), Uploads(mask_type="center"), Uploads(preprocess=True)])
def test_uploads_without_a_file_are_refused_before_anything_is_sent(
    uploads: Uploads, darkroom: DarkroomClient, backend: FakeBackend
) -> None:
    with pytest.raises(ValueError, match="no file"):
        darkroom.generate(prompt="a red cup", uploads=uploads)
    with pytest.raises(ValueError, match="no file"):
        list(darkroom.stream(prompt="a red cup", uploads=uploads))
    assert not backend.asked


def test_an_error_has_all_that_the_server_said(darkroom: DarkroomClient) -> None:
    with pytest.raises(DarkroomError, match="must be a multiple of 8") as caught:
        darkroom.generate(prompt="a red cup", width=511)
    error = caught.value
    assert (error.status, error.code, error.field, error.retryable) == (422, "not_a_multiple", "width", False)
    assert error.request_id


def test_a_refusal_and_a_failure_in_a_stream_are_raised(darkroom: DarkroomClient, backend: FakeBackend) -> None:
    backend.script = refusing(Overloaded("the queue is full"))
    with pytest.raises(DarkroomError, match="the queue is full") as refused:
        list(darkroom.stream(prompt="a red cup"))
    assert (refused.value.status, refused.value.retryable) == (503, True)
    backend.script = failing(NumericalFailure("not finite"), 0)
    with pytest.raises(DarkroomError, match="not finite"):
        list(darkroom.stream(prompt="a red cup"))
    with pytest.raises(DarkroomError, match="not finite"):
        darkroom.generate(prompt="a red cup", num_images=2)


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_the_key_goes_along_with_everything(
    by: str, service: DiffusionService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = generate_key()
    (tmp_path / "keys.yaml").write_text(Key(id="a", hash=hash_of(key), tenant="acme").to_line())
    transport = Through(service, keys=Keyring(Secret(file=tmp_path / "keys.yaml")))
    monkeypatch.setenv("DARKROOM_API_KEY", generate_key() if by == "argument" else f"{key}\n")
    with DarkroomClient("http://test", api_key=key if by == "argument" else None, transport=transport) as client:
        assert len(client.generate(prompt="a red cup")) == 1
        assert [event.name for event in client.stream(prompt="a red cup")][-1] == "done"
    with DarkroomClient("http://test", api_key="", transport=transport) as client, pytest.raises(DarkroomError) as none:
        client.generate(prompt="a red cup")
    assert (none.value.status, none.value.code) == (401, "missing_api_key")


@pytest.mark.parametrize("key", ["a\nb", "clé"])
def test_what_can_be_no_key_is_not_sent(key: str) -> None:
    with pytest.raises(DarkroomError) as caught:
        DarkroomClient(api_key=key)
    assert (caught.value.code, key in str(caught.value)) == ("invalid_api_key", False)


def test_no_server_is_an_error_that_says_so() -> None:
    with DarkroomClient("http://127.0.0.1:9") as client, pytest.raises(DarkroomError) as caught:
        client.generate(prompt="a red cup")
    assert (caught.value.status, caught.value.code) == (0, "unreachable")


def answering(*answers: httpx.Response) -> DarkroomClient:
    """A client of something that gives these answers, one after another."""
    left = list(answers)
    return DarkroomClient("http://test", transport=httpx.MockTransport(lambda _: left.pop(0)))


PAGE = "<html>a page</html>"
CALLS: list[Callable[[DarkroomClient], object]] = [
    lambda client: client.generate(prompt="a red cup"),
    lambda client: client.batch([{"prompt": "a red cup"}]),
    lambda client: client.submit([{"prompt": "a red cup"}]),
    lambda client: client.job("a"),
    lambda client: client.jobs(),
    lambda client: client.list_of("models"),
    lambda client: client.cancel_job("a"),
    lambda client: client.cancel("a"),
    lambda client: client.health(),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "text", [PAGE, "[]", "{}", "null", "[" * 10_000], ids=["page", "list", "other", "null", "deep"]
)
def test_a_success_that_no_darkroom_server_has_answered_is_an_error(
    text: str, call: Callable[[DarkroomClient], object]
) -> None:
    with answering(httpx.Response(200, text=text)) as client, pytest.raises(DarkroomError) as caught:
        call(client)
    assert (caught.value.status, caught.value.code) == (200, "invalid_answer")


@pytest.mark.parametrize("call", CALLS)
def test_an_answer_that_cannot_be_decompressed_is_an_error(call: Callable[[DarkroomClient], object]) -> None:
    broken = httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))
    with answering(broken) as client, pytest.raises(DarkroomError) as caught:
        call(client)
    assert caught.value.code == "invalid_answer"


@pytest.mark.parametrize("status", [302, 403, 502])
def test_an_answer_of_something_else_on_the_way_is_an_error_with_its_status(status: int) -> None:
    for call in (lambda client: client.health(), lambda client: list(client.stream(prompt="a red cup"))):
        with answering(httpx.Response(status, text=PAGE)) as client, pytest.raises(DarkroomError) as caught:
            call(client)
        assert (caught.value.status, caught.value.retryable) == (status, status == 502)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("text", [PAGE, '{"message": "Bad gateway", "status": "error"}'], ids=["page", "json"])
def test_what_a_proxy_says_of_a_server_that_is_away_is_tried_again(
    status: int, text: str, naps: list[float], service: DiffusionService
) -> None:
    away = [httpx.Response(status, text=text), httpx.Response(status, text=text, headers={"Retry-After": "7"})]
    real = Through(service)
    proxy = httpx.MockTransport(lambda request: away.pop(0) if away else real.handle_request(request))
    with DarkroomClient("http://test", transport=proxy) as client:
        assert len(client.generate(prompt="a red cup")) == 1
    assert naps[1:] == [7.0]


def test_an_unhealthy_servers_health_is_returned_and_an_error_is_raised() -> None:
    unhealthy = {"status": "unhealthy", "loaded_models": 0}
    refused = {"status": 401, "error": {"code": "missing_api_key", "message": "a key is needed"}}
    with answering(httpx.Response(503, json=unhealthy), httpx.Response(401, json=refused)) as client:
        assert client.health() == unhealthy
        with pytest.raises(DarkroomError) as caught:
            client.health()
    assert caught.value.code == "missing_api_key"


@pytest.mark.parametrize("data", ["{broken", "[1]", "null"])
def test_a_broken_line_in_a_stream_is_an_error(data: str) -> None:
    with (
        answering(httpx.Response(200, text=f"event: progress\ndata: {data}\n\n")) as client,
        pytest.raises(DarkroomError) as caught,
    ):
        list(client.stream(prompt="a red cup"))
    assert caught.value.code == "invalid_answer"


@pytest.mark.parametrize("retryable", [True, False])
def test_a_failed_image_says_whether_it_may_succeed_later(retryable: bool) -> None:
    failure = {"index": 0, "code": "replica_lost", "message": "lost", "retryable": retryable}
    answer = {"id": "a", "images": [], "failures": [failure]}
    with answering(httpx.Response(200, json=answer)) as client, pytest.raises(DarkroomError, match="lost") as caught:
        client.generate(prompt="a red cup")
    assert (caught.value.retryable, caught.value.request_id) == (retryable, "a")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://127.0.0.1:port"])
def test_an_address_that_is_none_is_an_error_that_says_so(url: str) -> None:
    with pytest.raises(DarkroomError, match="must be like http") as caught, DarkroomClient(url) as client:
        list(client.stream(prompt="a red cup"))
    assert (caught.value.status, caught.value.code) == (0, "invalid_url")


def test_a_server_that_says_nothing_is_not_waited_for_longer_than_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with DarkroomClient(url, 0.2) as client, pytest.raises(DarkroomError) as caught:
            client.generate(prompt="a red cup")
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (0, "timeout", True)


def test_a_stream_cut_short_is_an_error() -> None:
    cut = httpx.MockTransport(lambda _: httpx.Response(200, text="event: progress\ndata: {}\n\nevent: image\nda"))
    with DarkroomClient("http://test", transport=cut) as client, pytest.raises(DarkroomError) as caught:
        list(client.stream(prompt="a red cup"))
    assert caught.value.code == "connection_lost"


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with http_server(create_api(DiffusionService(FakeBackend()))) as url, DarkroomClient(url) as client:
        assert client.health()["status"] == "healthy"


ENTRIES: list[GenerationParams | dict[str, Any]] = [
    {"prompt": "a cup", "seed": 1, "num_images": 2},
    GenerationParams(prompt="a shoe", seed=2),
    {"prompt": None},
]


@pytest.mark.parametrize("sync_images", [0, 32])
def test_a_batch_is_waited_for_however_it_is_answered(backend: FakeBackend, sync_images: int) -> None:
    app = create_api(DiffusionService(backend), jobs_config=JobsConfig(sync_images=sync_images))
    with http_server(app) as url, DarkroomClient(url) as client:
        first, second, third = client.batch(ENTRIES, priority="low")
    assert [(image.seed, image.picture().size) for image in first.images] == [(1, (64, 64)), (2, (64, 64))]
    assert (first.error, second.error, len(second.images)) == (None, None, 1)
    assert (third.images, third.error and third.error.field) == ((), "requests/2/prompt")
    assert {request.params.priority for request in backend.asked} == {"low"}


def test_a_job_is_looked_at_and_cancelled(backend: FakeBackend) -> None:
    backend.script = lambda request: slow(request) if request.params.seed == 2 else success(request)
    with http_server(create_api(DiffusionService(backend))) as url, DarkroomClient(url) as client:
        job_id = client.submit(ENTRIES, deadline_ms=60_000)
        while (job := client.job(job_id))["succeeded"] < 1:
            time.sleep(0.01)
        assert job["state"] == "running"
        assert client.cancel_job(job_id)["state"] == client.cancel_job(job_id)["state"] == "cancelled"
        assert {entry.index: len(entry.images) for entry in client.entries_of(client.job(job_id))} == {0: 2, 2: 0}
        with pytest.raises(DarkroomError) as caught:
            client.job("0" * 32)
    assert (caught.value.status, caught.value.code) == (404, "job_not_found")


def test_a_batch_whose_job_was_cancelled_has_an_entry_for_each_request(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.script = lambda request: slow(request) if request.params.seed == 2 else success(request)
    app = create_api(DiffusionService(backend), jobs_config=JobsConfig(sync_images=0))
    with http_server(app) as url, DarkroomClient(url) as client, DarkroomClient(url) as other:

        def cancel_it(_: float) -> None:
            (job,) = httpx.get(f"{url}{BASE}/jobs").json()["jobs"]
            if job["succeeded"]:
                other.cancel_job(job["id"])

        monkeypatch.setattr("serve_app.client.client.sleep", cancel_it)
        first, second, third = client.batch(ENTRIES)
    assert (len(first.images), first.error) == (2, None)
    assert (second.index, second.images) == (1, ())
    assert second.error is not None
    assert (second.error.status, second.error.code, second.error.retryable) == (499, "cancelled", False)
    assert third.error is not None
    assert third.error.field == "requests/2/prompt"


def test_a_job_is_submitted_once_under_one_key_and_listed(backend: FakeBackend) -> None:
    with http_server(create_api(DiffusionService(backend))) as url, DarkroomClient(url) as client:
        first = client.submit(ENTRIES, idempotency_key="mine")
        assert client.submit(ENTRIES, idempotency_key="mine") == first
        second = client.submit(ENTRIES)
        assert [job["id"] for job in client.jobs()] == [second, first]


def test_a_job_says_where_it_is_to_call_back(backend: FakeBackend) -> None:
    config = CallbacksConfig(uploads=True)
    with http_server(create_api(DiffusionService(backend), callbacks=config)) as url, DarkroomClient(url) as client:
        with pytest.raises(DarkroomError) as caught:
            client.submit(ENTRIES, upload_urls=[["https://10.0.0.1/a", "https://10.0.0.1/b"], None, None])
        assert (caught.value.code, caught.value.field) == ("address_not_allowed", "upload_urls/0/0")
        with pytest.raises(DarkroomError) as caught:
            client.submit(ENTRIES, webhook_url="https://example.com/", webhook_events=["job.failed"])
        assert (caught.value.code, caught.value.field) == ("webhooks_off", "webhook_url")


def test_what_a_server_has_is_listed_by_name(backend: FakeBackend) -> None:
    with http_server(create_api(DiffusionService(backend))) as url, DarkroomClient(url) as client:
        assert [model["name"] for model in client.list_of("models")] == ["tiny", "other"]
        lists: tuple[Listed, ...] = ("samplers", "styles", "templates", "ad-formats")
        assert all(row["name"] for what in lists for row in client.list_of(what))


def test_a_request_can_be_cancelled_by_its_id(backend: FakeBackend) -> None:
    backend.script = slow
    with http_server(create_api(DiffusionService(backend))) as url, DarkroomClient(url) as client:
        assert not client.cancel("mine")
        events = client.stream(prompt="a cup", request_id="mine")
        assert next(events).data["id"] == "mine"
        assert client.cancel("mine")
        with pytest.raises(DarkroomError) as caught:
            list(events)
    assert (caught.value.status, caught.value.code) == (499, "cancelled")


def test_a_picture_is_enlarged(backend: FakeBackend) -> None:
    service = DiffusionService(backend, upscalers=[UpscalerSpec("4x", "nowhere")])
    with DarkroomClient("http://test", transport=Through(service), retries=0) as darkroom:
        assert [each["name"] for each in darkroom.list_of("upscalers")] == ["4x", "lanczos"]
        enlarged = darkroom.upscale(PICTURE, scale=1.5, output_format="webp")
        with Image.open(io.BytesIO(enlarged)) as picture:
            assert (picture.size, picture.format) == ((96, 96), "WEBP")
        darkroom.upscale(PICTURE, upscaler="lanczos")
        assert [each.upscaler for each in backend.enlarged] == ["4x"]
        with pytest.raises(DarkroomError) as refused:
            darkroom.upscale(PICTURE, upscaler="8x")
        assert refused.value.code == "invalid_parameter"

"""The asynchronous client, against the real API; and that both clients try again what is safe to try again."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from deployments.engine.protocol.errors import InvalidParameter, NumericalFailure, Overloaded
from deployments.engine.protocol.inputs import Uploads
from serve_app.api.application import create_api
from serve_app.client import AsyncDarkroomClient, DarkroomClient, DarkroomError, ServerEvent
from serve_app.client.retries import LONGEST_S, Tries
from serve_app.service import DiffusionService
from tests.serve_app.client.test_client import PICTURE, Through
from tests.serve_app.fakes import FakeBackend, Script, failing, refusing, slow, success, until

CUP = "a red cup"


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that clients would have waited."""
    waited: list[float] = []

    async def nap(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("serve_app.client.client.sleep", waited.append)
    monkeypatch.setattr("serve_app.client.async_client.sleep", nap)
    return waited


@pytest.fixture
async def darkroom(service: DiffusionService) -> AsyncIterator[AsyncDarkroomClient]:
    app = create_api(service)
    app.state.jobs.start()
    async with AsyncDarkroomClient("http://test", transport=httpx.ASGITransport(app)) as client:
        yield client
    await app.state.jobs.stop()


async def test_images_come_in_order_and_many_at_once(darkroom: AsyncDarkroomClient) -> None:
    made = await asyncio.gather(*(darkroom.generate(prompt=CUP, num_images=2, seed=seed) for seed in (1, 5)))
    assert [[image.seed for image in images] for images in made] == [[1, 2], [5, 6]]
    assert made[0][0].picture().size == (64, 64)


async def test_events_come_to_a_callback(darkroom: AsyncDarkroomClient) -> None:
    events: list[ServerEvent] = []
    (image,) = await darkroom.generate(prompt=CUP, seed=3, on_event=events.append)
    assert image.seed == 3
    assert [event.name for event in events] == ["progress", "progress", "progress", "image", "done"]


async def test_a_stream_ends_with_the_error_of_its_request(darkroom: AsyncDarkroomClient, backend: FakeBackend) -> None:
    backend.script = refusing(InvalidParameter("prompt", "is odd"))
    with pytest.raises(DarkroomError, match="is odd"):
        [event async for event in darkroom.stream(prompt=CUP)]
    backend.script = failing(NumericalFailure("not finite"), 0)
    with pytest.raises(DarkroomError, match="not finite"):
        await darkroom.generate(prompt=CUP, num_images=2, on_event=lambda _: None)


async def test_a_batch_and_a_job_give_their_entries(darkroom: AsyncDarkroomClient) -> None:
    first, second = await darkroom.batch([{"prompt": CUP, "seed": 1}, {"prompt": "", "width": 7}])
    assert [image.seed for image in first.images] == [1]
    assert second.error is not None
    assert second.error.field == "requests/1/width"
    job_id = await darkroom.submit([{"prompt": CUP, "seed": 4}])
    while (job := await darkroom.job(job_id))["state"] in ("queued", "running"):
        await asyncio.sleep(0.01)
    (entry,) = await darkroom.entries_of(job)
    assert entry.images[0].seed == 4
    assert (await darkroom.cancel_job(job_id))["state"] == "succeeded"
    assert [job["id"] for job in await darkroom.jobs()] == [job_id]
    assert [model["name"] for model in await darkroom.list_of("models")] == ["tiny", "other"]
    assert (await darkroom.health())["status"] == "healthy"


async def test_a_request_can_be_cancelled_by_its_name(darkroom: AsyncDarkroomClient, backend: FakeBackend) -> None:
    backend.script = slow
    waiting = asyncio.ensure_future(darkroom.generate(prompt=CUP, request_id="mine"))
    await until(lambda: backend.running == 1)
    assert await darkroom.cancel("mine")
    with pytest.raises(DarkroomError) as cancelled:
        await waiting
    assert cancelled.value.code == "cancelled"
    assert not await darkroom.cancel("mine")


def first_then(error: Exception, times: int) -> Script:
    """Refuses the first requests, and then makes them."""
    left = [refusing(error)] * times
    return lambda request: (left.pop() if left else success)(request)


async def test_what_may_succeed_later_is_tried_again(
    darkroom: AsyncDarkroomClient, service: DiffusionService, backend: FakeBackend, naps: list[float]
) -> None:
    backend.script = first_then(Overloaded("full", retry_after=3.0), 2)
    assert len(await darkroom.generate(prompt=CUP, seed=1)) == 1
    assert naps == [3.0, 3.0]
    backend.script = first_then(Overloaded("full", retry_after=4.0), 1)
    synchronous = DarkroomClient("http://test", transport=Through(service))
    assert len(await asyncio.to_thread(lambda: synchronous.generate(prompt=CUP, seed=2))) == 1
    assert naps == [3.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("error", "retries"), [(InvalidParameter("prompt", "is odd"), 2), (Overloaded("full", retry_after=1.0), 0)]
)
async def test_what_will_fail_again_and_what_nobody_wants_tried_again_is_not(
    error: Exception, retries: int, service: DiffusionService, backend: FakeBackend, naps: list[float]
) -> None:
    backend.script = refusing(error)
    transport = httpx.ASGITransport(create_api(service))
    async with AsyncDarkroomClient("http://test", transport=transport, retries=retries) as client:
        with pytest.raises(DarkroomError):
            await client.generate(prompt=CUP)
    assert len(backend.asked) == 1
    assert not naps


class Flaky(httpx.AsyncBaseTransport):
    """Loses every answer but the last: the server has done the work all the same."""

    def __init__(self, inner: httpx.AsyncBaseTransport, losses: int) -> None:
        self.inner, self.losses = inner, losses

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        if self.losses:
            self.losses -= 1
            raise httpx.ReadError("lost")
        return response


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.generate(prompt=CUP),
        lambda client: client.batch([{"prompt": CUP}]),
    ],
)
async def test_a_request_whose_answer_is_lost_is_made_once(
    ask: Callable[[AsyncDarkroomClient], object], service: DiffusionService, backend: FakeBackend, naps: list[float]
) -> None:
    transport = Flaky(httpx.ASGITransport(create_api(service)), 2)
    async with AsyncDarkroomClient("http://test", transport=transport) as client:
        assert await ask(client)  # type: ignore[misc]
    assert len(backend.asked) == 1
    assert len(naps) == 2


def test_waits_double_up_to_a_bound_and_a_long_wish_is_not_waited_for() -> None:
    error, tries = DarkroomError(503, "overloaded", "full", retryable=True), Tries(10, 600)
    waits = [tries.wait_s(error) for _ in range(10)]
    assert all(wait <= LONGEST_S for wait in waits)
    assert waits[0] <= 0.5
    with pytest.raises(DarkroomError, match="full"):
        tries.wait_s(error)
    error.retry_after = 599.0
    with pytest.raises(DarkroomError, match="full"):
        Tries(10, 600).wait_s(error)


def test_uploads_go_along_on_every_try(service: DiffusionService, backend: FakeBackend, naps: list[float]) -> None:
    backend.script = first_then(Overloaded("full", retry_after=1.0), 1)
    with DarkroomClient("http://test", transport=Through(service)) as client:
        client.generate(prompt=CUP, uploads=Uploads(image=PICTURE))
    assert [request.uploads.image for request in backend.asked if request.uploads] == [PICTURE, PICTURE]

"""Files on their way into an engine: decoded beside everything else, and not kept."""

import asyncio
import io
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from deployments import intake as intake_module
from deployments.engine.errors import InvalidParameter, Overloaded
from deployments.engine.events import Accepted, Event, Refused
from deployments.engine.inputs import Uploads
from deployments.engine.params import GenerationParams
from deployments.engine.row import Request
from deployments.intake import Intake

PARAMS = GenerationParams(prompt="a cup", seed=1, model_name="tiny", width=64, height=64)


class Engine:
    """Accepts everything that it has room for, and remembers it."""

    def __init__(self, *, full: bool = False) -> None:
        self.full = full
        self.asked: list[Request] = []

    def check_room(self) -> None:
        if self.full:
            raise Overloaded("full")

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        yield Accepted(request.id, 0)


def picture(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


def request(**files: Any) -> Request:
    return Request("r1", PARAMS, uploads=Uploads(**files))


@pytest.fixture
def intake() -> Iterator[Intake]:
    intake = Intake()
    yield intake
    intake.close()


async def events_of(intake: Intake, engine: Engine, asked: Request) -> list[Event]:
    return [event async for event in intake.generate(engine, asked)]


async def test_files_become_pictures_of_the_requests_size(intake: Intake) -> None:
    engine = Engine()
    assert await events_of(intake, engine, request(image=picture(), mask=picture("white"))) == [Accepted("r1", 0)]
    (asked,) = engine.asked
    assert asked.uploads is None
    assert asked.inputs.image is not None
    assert asked.inputs.mask is not None
    assert (asked.inputs.image.shape, asked.inputs.mask.shape) == ((64, 64, 3), (64, 64))


async def test_a_broken_file_refuses_its_request(intake: Intake) -> None:
    (refused,) = await events_of(intake, Engine(), request(hints=(picture()[:60],)))
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, InvalidParameter)
    assert refused.error.field == "control_image"


async def test_a_full_queue_refuses_before_a_file_is_decoded(intake: Intake) -> None:
    (refused,) = await events_of(intake, Engine(full=True), request(image=b"nobody looks into it"))
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, Overloaded)


async def test_an_owner_drops_files_once_they_are_decoded_and_others_keep_them(intake: Intake) -> None:
    kept, dropped, owner = (
        request(image=picture(), hints=(picture(),)),
        request(image=picture(), hints=(picture(),)),
        Intake(owns_files=True),
    )
    await events_of(intake, Engine(), kept)
    await events_of(owner, Engine(), dropped)
    owner.close()
    assert kept.uploads == Uploads(image=picture(), hints=(picture(),))
    assert dropped.uploads == Uploads()


async def test_decoding_waits_for_nobody_else_and_takes_two_threads_at_most(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    take_in = intake_module.take_in

    def noted(asked: Request) -> Request:
        threads.add(threading.current_thread().name)
        return take_in(asked)

    monkeypatch.setattr(intake_module, "take_in", noted)
    blocked = threading.Event()
    others = [asyncio.ensure_future(asyncio.to_thread(blocked.wait)) for _ in range(64)]
    try:
        async with asyncio.timeout(10):
            asked = [replace(request(image=picture()), id=f"r{i}") for i in range(8)]
            answers = await asyncio.gather(*(events_of(intake, Engine(), each) for each in asked))
    finally:
        blocked.set()
        await asyncio.gather(*others)
    assert all(isinstance(events[0], Accepted) for events in answers)
    assert 1 <= len(threads) <= 2

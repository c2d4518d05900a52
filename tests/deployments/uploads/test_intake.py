"""Uploads on their way into an engine: decoded off the event loop, made into hints if asked, and not kept."""

import asyncio
import io
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deployments.annotators.catalogue import Annotators
from deployments.annotators.spec import DepthSpec
from deployments.engine.protocol.errors import (
    EngineError,
    GenerationFailed,
    InvalidParameter,
    ModelLoadError,
    Overloaded,
)
from deployments.engine.protocol.events import Accepted, Event, Failed
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.settings import ControlSettings
from deployments.engine.protocol.spec import PartSpec
from deployments.uploads import intake as intake_module
from deployments.uploads.intake import Intake, decode_uploads
from tests.deployments.annotators.images import patches
from tests.deployments.annotators.tiny import save_tiny_depth


def reference(width: int, height: int) -> bytes:
    """A picture whose left half is red and transparent, and whose right half is blue."""
    drawn = Image.new("RGBA", (width, height), (0, 0, 255, 255))
    drawn.paste((255, 0, 0, 0), (0, 0, width // 2, height))
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    return buffer.getvalue()


PARAMS = GenerationParams(prompt="a cup", seed=1, model_name="tiny", width=64, height=64)


class Engine:
    """Accepts everything that it has room for, and remembers it."""

    def __init__(self, *, full: bool = False) -> None:
        self.full = full
        self.asked: list[Request] = []

    def check_room(self, request: Request) -> None:
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
    controls = (ControlSettings(type="canny"),) * len(files.get("hints", ()))
    return Request("r1", PARAMS.model_copy(update={"controls": controls}), uploads=Uploads(**files))


@pytest.fixture
def intake() -> Iterator[Intake]:
    intake = Intake(Annotators())
    yield intake
    intake.close()


async def events_of(intake: Intake, engine: Engine, asked: Request) -> list[Event]:
    try:
        ready = await intake.decode(asked, engine)
    except EngineError as error:
        return [Failed(asked.id, error)]
    return [event async for event in engine.generate(ready)]


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
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, InvalidParameter)
    assert refused.error.field == "control_image"


async def test_what_nobody_thought_of_refuses_its_request(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Request:
        raise MemoryError

    monkeypatch.setattr(intake_module, "decode_uploads", fails)
    (refused,) = await events_of(intake, Engine(), request(image=picture()))
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, GenerationFailed)


async def test_a_full_queue_refuses_before_a_file_is_decoded(intake: Intake) -> None:
    (refused,) = await events_of(intake, Engine(full=True), request(image=b"nobody looks into it"))
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, Overloaded)


async def test_an_owner_drops_files_once_they_are_decoded_and_others_keep_them(intake: Intake) -> None:
    kept, dropped, owner = (
        request(image=picture(), hints=(picture(),)),
        request(image=picture(), hints=(picture(),)),
        Intake(Annotators(), owns_files=True),
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

    def noted(asked: Request, annotators: Annotators) -> Request:
        threads.add(threading.current_thread().name)
        return decode_uploads(asked, annotators)

    monkeypatch.setattr(intake_module, "decode_uploads", noted)
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


def png(width: int = 96, height: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(patches(width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def controlled(*types: str, hint: bytes, preprocess: bool = True) -> Request:
    controls = tuple(ControlSettings(type=kind) for kind in types)
    params = GenerationParams(prompt="a cup", seed=1, model_name="tiny", width=96, height=64, controls=controls)
    return Request("r1", params, uploads=Uploads(hints=(hint,) * len(types), preprocess=preprocess))


@pytest.fixture
def annotators(tmp_path: Path) -> Annotators:
    return Annotators({"depth": DepthSpec(PartSpec(str(save_tiny_depth(tmp_path))))}, "cpu")


def test_each_control_gets_the_hint_of_its_own_type(annotators: Annotators) -> None:
    inputs = decode_uploads(controlled("depth", "canny", hint=png()), annotators).inputs
    assert inputs
    for hint, kind in zip(inputs.hints, ("depth", "canny"), strict=True):
        assert (hint == annotators.of(kind)(patches(96, 64))).all()


def test_a_hint_is_made_at_the_requests_size(annotators: Annotators) -> None:
    inputs = decode_uploads(controlled("depth", hint=png(200, 200)), annotators).inputs
    assert inputs
    assert inputs.hints[0].shape == (64, 96, 3)


def test_a_finished_hint_is_left_alone(annotators: Annotators) -> None:
    inputs = decode_uploads(controlled("depth", hint=png(), preprocess=False), annotators).inputs
    assert inputs
    assert (inputs.hints[0] == patches(96, 64)).all()


def test_a_hint_of_two_can_be_made_from_a_photo_and_the_other_be_finished(annotators: Annotators) -> None:
    request = controlled("depth", "canny", hint=png(), preprocess=False)
    first, second = request.params.controls
    controls = (first, second.model_copy(update={"preprocess": True}))
    request = replace(request, params=request.params.model_copy(update={"controls": controls}))
    finished, made = decode_uploads(request, annotators).inputs.hints
    assert (finished == patches(96, 64)).all()
    assert (made == annotators.of("canny")(patches(96, 64))).all()


def test_as_many_hints_as_controlnets_are_needed(annotators: Annotators) -> None:
    request = controlled("depth", "canny", hint=png())
    with pytest.raises(InvalidParameter, match="once for each ControlNet"):
        decode_uploads(replace(request, uploads=Uploads(hints=(png(),), preprocess=True)), annotators)


def test_what_nobody_can_make_a_hint_of_is_refused_before_anything_is_decoded(annotators: Annotators) -> None:
    with pytest.raises(InvalidParameter) as refused:
        decode_uploads(controlled("canny", "pose", hint=b"not a picture"), annotators)
    assert refused.value.field == "preprocess"


async def test_a_network_that_cannot_be_loaded_refuses_the_request(annotators: Annotators, tmp_path: Path) -> None:
    nowhere = Annotators({"depth": DepthSpec(PartSpec(str(tmp_path / "nowhere")))}, "cpu")
    for mine, outcome in ((nowhere, Failed), (annotators, Accepted)):
        intake = Intake(mine)
        (event,) = await events_of(intake, Engine(), controlled("depth", hint=png()))
        intake.close()
        assert isinstance(event, outcome)
        assert not isinstance(event, Failed) or isinstance(event.error, ModelLoadError)


async def test_hints_are_made_as_the_engine_would_get_them() -> None:
    photo, drawing = io.BytesIO(), Image.new("RGB", (64, 64))
    drawing.paste("white", (0, 0, 32, 64))
    drawing.save(photo, "PNG")
    params = PARAMS.model_copy(update={"controls": (ControlSettings(type="canny"),)})
    request = Request("r", params, uploads=Uploads(hints=(photo.getvalue(),), preprocess=True))
    intake = Intake(Annotators({}, "cpu"))
    (hint,) = await intake.make_hints(request, Engine())
    ready = await intake.decode(request, Engine())
    assert ready.inputs is not None
    with Image.open(io.BytesIO(hint)) as decoded:
        assert decoded.tobytes() == ready.inputs.hints[0].tobytes()
    with pytest.raises(Overloaded):
        await intake.make_hints(request, Engine(full=True))
    intake.close()


def test_references_keep_their_own_size_and_order_and_a_requests_task() -> None:
    uploads = Uploads(image=picture(), references=(reference(40, 100), reference(32, 16)))
    inputs = decode_uploads(Request("r", PARAMS, uploads=uploads), Annotators()).inputs
    assert [each.shape for each in inputs.references] == [(100, 40, 3), (16, 32, 3)]
    assert inputs.task == "image-to-image"
    alone = decode_uploads(Request("r", PARAMS, uploads=Uploads(references=(reference(32, 16),))), Annotators()).inputs
    assert (alone.task, alone.image, len(alone.references)) == ("text-to-image", None, 1)


def test_a_references_transparency_is_white_and_exif_turns_it() -> None:
    (shown,) = decode_uploads(
        Request("r", PARAMS, uploads=Uploads(references=(reference(32, 16),))), Annotators()
    ).inputs.references
    assert (shown[:, :16] == 255).all()
    assert (shown[:, 16:] == (0, 0, 255)).all()
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32), "blue").save(buffer, "JPEG", exif=exif)
    turned = Request("r", PARAMS, uploads=Uploads(references=(buffer.getvalue(),)))
    assert decode_uploads(turned, Annotators()).inputs.references[0].shape == (64, 32, 3)


def test_a_large_reference_waits_as_a_smaller_one_of_its_shape() -> None:
    uploads = Uploads(references=(reference(2048, 512), reference(1024, 16)))
    large, fitting = decode_uploads(Request("r", PARAMS, uploads=uploads), Annotators()).inputs.references
    assert large.shape == (256, 1024, 3)
    assert fitting.shape == (16, 1024, 3)


def test_a_broken_reference_is_refused_by_its_field() -> None:
    uploads = Uploads(references=(reference(32, 16), reference(640, 640)[:200]))
    with pytest.raises(InvalidParameter) as refused:
        decode_uploads(Request("r", PARAMS, uploads=uploads), Annotators())
    assert refused.value.field == "reference_images"


def test_references_are_dropped_with_the_other_files() -> None:
    uploads = Uploads(references=(reference(32, 16),))
    uploads.drop()
    assert uploads.references == ()

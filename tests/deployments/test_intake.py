"""From files to arrays: what a replica does with a request's pictures before the engine sees it."""

import io
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from PIL import Image

from deployments.annotators.catalogue import Annotators
from deployments.annotators.spec import DepthSpec
from deployments.engine.errors import EngineError, InvalidParameter, ModelLoadError
from deployments.engine.events import Accepted, Event, Refused
from deployments.engine.inputs import Uploads
from deployments.engine.params import ControlSettings, GenerationParams
from deployments.engine.row import Request
from deployments.engine.spec import PartSpec
from deployments.intake import generate, take_in
from tests.deployments.annotators.pictures import patches
from tests.deployments.annotators.tiny import save_tiny_depth


def png(width: int = 96, height: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(patches(width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def request(*types: str, hint: bytes, preprocess: bool = True) -> Request:
    controls = tuple(ControlSettings(type=kind) for kind in types)
    params = GenerationParams(prompt="a cup", seed=1, model_name="tiny", width=96, height=64, controls=controls)
    return Request("r1", params, uploads=Uploads(hints=(hint,) * len(types), preprocess=preprocess))


@pytest.fixture
def annotators(tmp_path: Path) -> Annotators:
    return Annotators({"depth": DepthSpec(PartSpec(str(save_tiny_depth(tmp_path))))}, "cpu")


def test_each_control_gets_the_hint_of_its_own_type(annotators: Annotators) -> None:
    inputs = take_in(request("depth", "canny", hint=png()), annotators).inputs
    assert inputs
    for hint, kind in zip(inputs.hints, ("depth", "canny"), strict=True):
        assert (hint == annotators.of(kind)(patches(96, 64))).all()


def test_a_hint_is_made_at_the_requests_size(annotators: Annotators) -> None:
    inputs = take_in(request("depth", hint=png(200, 200)), annotators).inputs
    assert inputs
    assert inputs.hints[0].shape == (64, 96, 3)


def test_a_finished_hint_is_left_alone(annotators: Annotators) -> None:
    inputs = take_in(request("depth", hint=png(), preprocess=False), annotators).inputs
    assert inputs
    assert (inputs.hints[0] == patches(96, 64)).all()


def test_what_nobody_can_make_a_hint_of_is_refused_before_anything_is_decoded(annotators: Annotators) -> None:
    with pytest.raises(InvalidParameter) as refused:
        take_in(request("canny", "pose", hint=b"not a picture"), annotators)
    assert refused.value.field == "preprocess"


async def test_a_network_that_cannot_be_loaded_refuses_the_request(tmp_path: Path) -> None:
    class Engine:
        async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
            yield Accepted(request.id, 0)

    async def outcome(annotators: Annotators) -> EngineError | None:
        (event,) = [event async for event in generate(Engine(), request("depth", hint=png()), annotators)]
        return event.error if isinstance(event, Refused) else None

    nowhere = Annotators({"depth": DepthSpec(PartSpec(str(tmp_path / "nowhere")))}, "cpu")
    assert isinstance(await outcome(nowhere), ModelLoadError)
    somewhere = Annotators({"depth": DepthSpec(PartSpec(str(save_tiny_depth(tmp_path / "depth"))))}, "cpu")
    assert await outcome(somewhere) is None

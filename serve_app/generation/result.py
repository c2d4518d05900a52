"""The result of a request: its images, and how they were made."""

import io
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from PIL import Image

from deployments.engine.protocol.errors import EngineStopped
from deployments.engine.protocol.events import (
    Accepted,
    Event,
    Failed,
    Finished,
    ImageDone,
    ImageFailed,
    Source,
    Timings,
)
from deployments.engine.protocol.params import GenerationParams
from deployments.uploads.image_files import to_layer
from serve_app.generation.prepared import Prepared


@dataclass(frozen=True, slots=True)
class Result:
    """The images of one request. `failures` are those that could not be made, though others could.

    `id` is the caller's name for the request.

    `parameters` are complete: with the same uploads they give the same images. `effective_prompt` has the style
    applied. `source` says whether the images were made for this request.
    """

    id: str
    model: str
    images: tuple[ImageDone, ...]
    failures: tuple[ImageFailed, ...]
    parameters: GenerationParams
    effective_prompt: str
    timings: Timings
    source: Source = "made"


def result_of(
    prepared: Prepared,
    images: Sequence[ImageDone],
    failures: Sequence[ImageFailed],
    timings: Timings,
    source: Source = "made",
) -> Result:
    """The result of a finished request. Raises the first failure if there are no images."""
    if failures and not images:
        raise min(failures, key=lambda failure: failure.index).error
    asked = prepared.asked
    if images:
        # The images are right: cached ones keep the seed of the request that made them.
        asked = asked.model_copy(update={"seed": images[0].seed - images[0].index})
    return Result(
        id=prepared.request.name,
        model=prepared.request.model,
        images=tuple(sorted(images, key=lambda image: image.index)),
        failures=tuple(sorted(failures, key=lambda failure: failure.index)),
        parameters=asked,
        effective_prompt=prepared.request.params.prompt,
        timings=timings,
        source=source,
    )


async def collect_result(
    prepared: Prepared, stream: AsyncGenerator[Event, None], on_event: Callable[[Event], None] | None = None
) -> Result:
    """Returns the result of a request's events, which `on_event` gets as well. Raises what ended it, and EngineStopped
    where nothing did.
    """
    images: list[ImageDone] = []
    failures: list[ImageFailed] = []
    source: Source = "made"
    async with aclosing(stream) as events:
        async for event in events:
            if on_event is not None:
                on_event(event)
            match event:
                case Accepted():
                    source = event.source
                case ImageDone():
                    images.append(event)
                case ImageFailed():
                    failures.append(event)
                case Failed(error=error):
                    raise error
                case Finished(timings=timings):
                    return result_of(prepared, images, failures, timings, source)
    raise EngineStopped("the engine stopped before the request was finished")


def decode_image(image: ImageDone) -> Image.Image:
    """Decodes the image file."""
    picture = Image.open(io.BytesIO(image.data), formats=[image.format.upper()])
    picture.load()
    return picture


def to_png(picture: Image.Image) -> bytes:
    """Encodes `picture` as the file that a remote caller would upload, with its transparency."""
    buffer = io.BytesIO()
    to_layer(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

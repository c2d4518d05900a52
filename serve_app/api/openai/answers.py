"""Answers in OpenAI's form: whole, and as the events of a stream."""

import base64
import io
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NotRequired

from PIL import Image

# pydantic refuses `typing.TypedDict` before Python 3.12.
from typing_extensions import TypedDict

from deployments.engine.protocol.errors import EngineError
from deployments.engine.protocol.events import (
    Accepted,
    Event,
    Failed,
    Finished,
    ImageDone,
    ImageFailed,
    Preview,
    Source,
)
from serve_app.api.openai.errors import translate
from serve_app.api.openai.fields import ImagesRequest
from serve_app.api.problems import problem_of
from serve_app.api.responses.schemas import (
    ContinuationAnswer,
    FailureAnswer,
    SafetyAnswer,
    continuation_answer,
    failure_answer,
    safety_answer,
)
from serve_app.api.responses.stream_events import NamedEvent
from serve_app.generation.prepared import Prepared
from serve_app.generation.result import Result

Act = Literal["image_generation", "image_edit"]
"""How the names of a stream's events begin."""


class ImageData(TypedDict):
    """One image, in base64 or at an address, never both: some clients prefer the latter and may not fetch it.

    `revised_prompt` is the prompt with the style applied, if there is one.
    """

    b64_json: NotRequired[str]
    url: NotRequired[str]
    seed: int
    safety: NotRequired[SafetyAnswer]
    continued: NotRequired[ContinuationAnswer]
    revised_prompt: NotRequired[str]


class TokenDetails(TypedDict):
    """Always zero."""

    image_tokens: int
    text_tokens: int


class Usage(TypedDict):
    """Always zero: tokens are not what an image costs here, but clients read them."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class ImagesAnswer(TypedDict):
    """The images, and besides OpenAI's members `model`, which made them, `id`, `cached` and `failures`."""

    created: int
    data: list[ImageData]
    background: str
    output_format: str
    size: str
    usage: Usage
    id: str
    model: str
    cached: bool
    quality: NotRequired[str]
    safety_identifier: NotRequired[str]
    failures: NotRequired[list[FailureAnswer]]


def images_answer(asked: ImagesRequest, result: Result, urls: Sequence[str] | None = None) -> ImagesAnswer:
    """The JSON answer, with the images or their addresses. Encodes images, so call it in a thread."""
    fields = asked.fields
    answer = ImagesAnswer(
        created=int(time.time()),
        data=_describe_images(result, urls),
        background="opaque",
        output_format=fields.output_format,
        size=_size_of(result.images[0].width, result.images[0].height),
        usage=_usage(),
        id=result.id,
        model=result.model,
        cached=result.source == "cache",
    )
    if result.effective_prompt != result.parameters.prompt:
        for image in answer["data"]:
            image["revised_prompt"] = result.effective_prompt
    # `auto` is no quality that an answer can have.
    if fields.quality != "auto":
        answer["quality"] = fields.quality_today
    if fields.caller is not None:
        answer["safety_identifier"] = fields.caller
    if result.failures:
        answer["failures"] = [failure_answer(failure) for failure in result.failures]
    return answer


def _describe_images(result: Result, urls: Sequence[str] | None) -> list[ImageData]:
    if urls is not None:
        described = [ImageData(url=url, seed=image.seed) for url, image in zip(urls, result.images, strict=True)]
    else:
        described = [
            ImageData(b64_json=base64.b64encode(image.data).decode(), seed=image.seed) for image in result.images
        ]
    for each, image in zip(described, result.images, strict=True):
        if image.safety is not None:
            each["safety"] = safety_answer(image.safety)
        if image.continued is not None:
            each["continued"] = continuation_answer(image.continued)
    return described


class ImagesEventEncoder:
    """Encodes one request's events: partial images, and each image completed, in order; failures come last."""

    def __init__(self, asked: ImagesRequest, prepared: Prepared, act: Act) -> None:
        self._fields, self._prepared, self._act = asked.fields, prepared, act
        self._completed = f"{act}.completed"
        self.large_events: Final = (self._completed,)
        self._source: Source = "made"
        self._partials: dict[int, int] = {}
        # Clients cannot tell images apart but by their order, so those that are early wait. None is a failed one.
        self._done: dict[int, NamedEvent | None] = {}
        self._sent = 0
        self._failures: list[ImageFailed] = []

    def encode(self, event: Event) -> list[NamedEvent]:
        """Encodes an engine's event; progress has no words here. An image is encoded, so call it in a thread then."""
        match event:
            case Accepted(source=source):
                self._source = source
            case Preview():
                return [self._encode_partial(event)]
            case ImageDone(index=index):
                self._done[index] = self._encode_completed(event)
                return self._release()
            case ImageFailed(index=index):
                self._failures.append(event)
                self._done[index] = None
                return self._release()
            case Failed(error=error):
                return [*self._release_all(), self._encode_error(error)]
            case Finished() if self._failures:
                return [self._encode_error(min(self._failures, key=lambda failure: failure.index).error)]
        return []

    def _encode_error(self, error: EngineError) -> NamedEvent:
        """Encodes an error, as the body of an error answer: clients raise it."""
        return "error", translate(problem_of(error)).body(self._prepared.request.name)

    def _release(self) -> list[NamedEvent]:
        """The images whose turn it is."""
        released = []
        while self._sent in self._done:
            event = self._done.pop(self._sent)
            self._sent += 1
            if event is not None:
                released.append(event)
        return released

    def _release_all(self) -> list[NamedEvent]:
        """The images that are done, though one before them will never be."""
        left = [self._done.pop(index) for index in sorted(self._done)]
        return [event for event in left if event is not None]

    def _encode_partial(self, preview: Preview) -> NamedEvent:
        name, number = f"{self._act}.partial_image", self._partials.get(preview.index, 0)
        self._partials[preview.index] = number + 1
        with Image.open(io.BytesIO(preview.data), formats=["JPEG"]) as picture:
            size = _size_of(picture.width, picture.height)
        # Whatever format the images shall have: previews are cheap.
        shown = self._describe(name, base64.b64encode(preview.data).decode(), "jpeg", size)
        return name, {**shown, "partial_image_index": number, "index": preview.index}

    def _encode_completed(self, image: ImageDone) -> NamedEvent:
        size = _size_of(image.width, image.height)
        data = base64.b64encode(image.data).decode()
        shown = self._describe(self._completed, data, self._fields.output_format, size)
        more = {} if self._fields.caller is None else {"safety_identifier": self._fields.caller}
        cached = self._source == "cache"
        ours: dict[str, Any] = {"index": image.index, "seed": image.seed, "cached": cached}
        if image.safety is not None:
            ours["safety"] = safety_answer(image.safety)
        if image.continued is not None:
            ours["continued"] = continuation_answer(image.continued)
        return self._completed, {**shown, "usage": _usage(), **more, **ours}

    def _describe(self, name: str, data: str, output_format: str, size: str) -> Mapping[str, Any]:
        return {
            "type": name,
            "b64_json": data,
            "background": "opaque",
            "created_at": int(time.time()),
            "output_format": output_format,
            "quality": self._fields.quality_today,
            "size": size,
            "model": self._prepared.request.model,
        }


def _usage() -> Usage:
    details = TokenDetails(image_tokens=0, text_tokens=0)
    return Usage(input_tokens=0, input_tokens_details=details, output_tokens=0, total_tokens=0)


def _size_of(width: int, height: int) -> str:
    return f"{width}x{height}"

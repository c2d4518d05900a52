"""Encodes engine events as a stream's events: a name and data. Independent of HTTP."""

import base64
from dataclasses import replace
from typing import Any, Final

from deployments.engine.protocol.errors import EngineError
from deployments.engine.protocol.events import (
    Accepted,
    Event,
    Failed,
    Finished,
    ImageDone,
    ImageFailed,
    Preview,
    Progress,
    Source,
)
from serve_app.api.problems import problem_of
from serve_app.api.responses.schemas import answer_of, failure_answer, image_answer
from serve_app.generation.prepared import Prepared
from serve_app.generation.result import result_of

NamedEvent = tuple[str, dict[str, Any]]


class StreamEncoder:
    """Encodes one request's events, in order, and remembers what the last one sums up."""

    large_events: Final = ("image",)

    def __init__(self, prepared: Prepared, request_id: str) -> None:
        self._prepared = prepared
        self._request_id = request_id
        self._images: list[ImageDone] = []
        self._failures: list[ImageFailed] = []
        self._source: Source = "made"

    def encode(self, event: Event) -> tuple[NamedEvent]:
        """Encodes an engine's event. `Accepted` becomes the first `progress`; the last event is `done` or `error`."""
        return (self._encode(event),)

    def _encode(self, event: Event) -> NamedEvent:
        match event:
            case Accepted():
                self._source = event.source
                return "progress", {
                    "id": self._prepared.request.name,
                    "step": 0,
                    "steps": event.steps,
                    "position": event.position,
                    "seconds_to_start": event.seconds_to_start,
                    "seconds_left": event.seconds_to_finish,
                }
            case Progress(step=step, steps=steps, position=position, seconds_left=left):
                progress = {"step": step, "steps": steps, "position": position}
                return "progress", progress if left is None else progress | {"seconds_left": left}
            case Preview(index=index, step=step, data=data):
                return "preview", {"index": index, "step": step, "data": base64.b64encode(data).decode()}
            case ImageDone():
                # The last event needs to know that there is an image, but not its pixels.
                self._images.append(replace(event, data=b""))
                return "image", dict(image_answer(event))
            case ImageFailed():
                self._failures.append(event)
                return "failed", dict(failure_answer(event))
            case Failed(error=error):
                return self._encode_error(error)
            case Finished():
                return self._encode_end(event)

    def _encode_error(self, error: EngineError) -> NamedEvent:
        """Encodes the end of a request that failed, with the body of an error answer."""
        return "error", problem_of(error).body(self._request_id)

    def _encode_end(self, finished: Finished) -> NamedEvent:
        try:
            result = result_of(self._prepared, self._images, self._failures, finished.timings, self._source)
        except EngineError as error:
            return self._encode_error(error)
        return "done", {name: value for name, value in answer_of(result).items() if name != "images"}

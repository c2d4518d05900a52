"""The events of a request. Plain data without torch: events cross process boundaries.

A request's stream is: one `Accepted` or `Failed`; any number of `Progress` and `Preview`; per image one `ImageDone` or
`ImageFailed`; and one `Finished`. `Failed` ends the stream early whenever the request cannot go on.
"""

from dataclasses import dataclass, field
from typing import Literal

from deployments.engine.protocol.errors import EngineError, Filtered
from deployments.engine.protocol.safety import Finding

Source = Literal["made", "cache", "shared"]


@dataclass(frozen=True, slots=True)
class Timings:
    """The milliseconds a request spent in each phase; `denoise_ms` is wall time, shared with the rows beside it."""

    queued_ms: float = 0.0
    encode_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is in the queue with `position` requests before it.

    The seconds are estimates of the time to its first step and to its last image, if nothing else arrives. Each of its
    images takes `steps` evaluations of the network, as `Progress` counts them; 0 if nothing is left to do. Its images
    are `made` for it; a cache before the engines may also say that they come from the `cache`, or are being made for
    another request and `shared`.
    """

    request_id: str
    position: int
    steps: int = 0
    seconds_to_start: float = 0.0
    seconds_to_finish: float = 0.0
    source: Source = "made"


@dataclass(frozen=True, slots=True)
class Failed:
    """Ends the stream: the request cannot go on.

    Before `Accepted` it was refused; after it, the work done for it is lost.
    """

    request_id: str
    error: EngineError


@dataclass(frozen=True, slots=True)
class Progress:
    """The slowest image has done `step` of `steps` UNet evaluations; `position` is that in the queue, 0 once it runs.

    `seconds_left` is the estimated time to the last image, if there is an estimate.
    """

    request_id: str
    step: int
    steps: int
    position: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview of image `index` while it is being made: a small JPEG."""

    request_id: str
    index: int
    step: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Continuation:
    """An image took over another one's state after `steps` evaluations; their prompts' cosine distance is told."""

    steps: int
    distance: float


@dataclass(frozen=True, slots=True)
class ImageDone:
    """Image `index`, encoded as `format` (png, webp, jpeg). `safety` is what its checkers found, if it has any.

    `continued` is there if it did not begin from noise of its own: then its parameters alone do not give it again.
    `is_current` is False if engines of another version than the caller knows of made it, as happens during an update.
    """

    request_id: str
    index: int
    seed: int
    format: str
    width: int
    height: int
    data: bytes = field(repr=False)
    safety: Finding | None = None
    continued: Continuation | None = None
    is_current: bool = True


@dataclass(frozen=True, slots=True)
class ImageFailed:
    """Image `index` could not be made, or was filtered; the other images are not affected."""

    request_id: str
    index: int
    error: EngineError


@dataclass(frozen=True, slots=True)
class Finished:
    """Every image of the request is done or failed."""

    request_id: str
    timings: Timings


Event = Accepted | Failed | Progress | Preview | ImageDone | ImageFailed | Finished


def is_filtered(event: Event) -> bool:
    """Returns True if an image was made, and its model's safety policy keeps it back."""
    return isinstance(event, ImageFailed) and isinstance(event.error, Filtered)

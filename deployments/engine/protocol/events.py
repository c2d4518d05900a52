"""What an engine says while it works on a request. Plain data without torch: events cross process boundaries.

A request's stream is: one `Accepted` or `Failed`; any number of `Progress` and `Preview`; per image one `ImageDone` or
`ImageFailed`; and one `Finished`. Where the engine itself stops first, a late `Failed` ends the stream instead.
"""

from dataclasses import dataclass, field
from typing import Literal

from deployments.engine.protocol.errors import EngineError

Source = Literal["made", "cache", "shared"]


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds a request spent in each phase; `denoise_ms` is wall time, shared with the rows beside it."""

    queued_ms: float = 0.0
    encode_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is in the queue with `position` requests before it.

    Its first step and its last image are likely so many seconds from now, if nothing else comes. Each of its images
    takes `steps` evaluations of the network, as `Progress` counts them; 0 where nothing is left to do. Its images are
    `made` for it; or, which only a cache before the engines says, they come from the `cache` or are being made for
    somebody else and `shared`.
    """

    request_id: str
    position: int
    steps: int = 0
    seconds_to_start: float = 0.0
    seconds_to_finish: float = 0.0
    source: Source = "made"


@dataclass(frozen=True, slots=True)
class Failed:
    """The request was not taken, and nothing was done for it."""

    request_id: str
    error: EngineError


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `steps` UNet evaluations done by the slowest image; `position` in the queue, 0 once it runs.

    `seconds_left` to the last image, where that can be foreseen.
    """

    request_id: str
    step: int
    steps: int
    position: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """A cheap look at image `index` in the making: a small JPEG."""

    request_id: str
    index: int
    step: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageDone:
    """Image `index`, encoded as `format` (png, webp, jpeg)."""

    request_id: str
    index: int
    seed: int
    format: str
    width: int
    height: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageFailed:
    """Image `index` could not be made; its neighbours are not affected."""

    request_id: str
    index: int
    error: EngineError


@dataclass(frozen=True, slots=True)
class Finished:
    """Every image of the request is done or failed."""

    request_id: str
    timings: Timings


Event = Accepted | Failed | Progress | Preview | ImageDone | ImageFailed | Finished

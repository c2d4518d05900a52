"""The JSON of the answers, for clients and for OpenAPI, and the conversion of results to it."""

import base64
from typing import Any, Final, Literal, NotRequired

# pydantic refuses `typing.TypedDict` before Python 3.12.
from typing_extensions import TypedDict

from deployments.engine.protocol.events import Continuation, ImageDone, ImageFailed, Timings, is_filtered
from deployments.engine.protocol.params import IMAGE_FIELDS, SERVICE_FIELDS, GenerationParams
from deployments.engine.protocol.safety import Finding, SafetyStatus
from serve_app.generation.result import Result

_RARE: Final = IMAGE_FIELDS | {
    "ad_format",
    "contrast",
    "deep_cache",
    "exact",
    "guidance_interval",
    "hires",
    "local_contrast",
    "loras",
    "metadata",
    "output_fit",
    "output_quality",
    "output_size",
    "reference",
    "sharpen",
    "template",
    "template_values",
}


class SafetyAnswer(TypedDict):
    """What checkers found in an image. `score` is the checker's own; none where the check failed."""

    status: SafetyStatus
    category: str
    score: float | None


class ContinuationAnswer(TypedDict):
    """An image took over another one's state after `steps` evaluations. `distance` is that of their prompts, 0 to 2."""

    steps: int
    distance: float


class ImageAnswer(TypedDict):
    """One image; `data` is the file in base64. `safety` is there if the model's images are checked.

    `continued` is there if it began from another image's early state, as `cache` similar allows.
    """

    index: int
    seed: int
    format: str
    width: int
    height: int
    data: str
    safety: NotRequired[SafetyAnswer]
    continued: NotRequired[ContinuationAnswer]


class FailureAnswer(TypedDict):
    """An image that failed, or was filtered, though others of its request may not have been."""

    index: int
    status: Literal["failed", "filtered"]
    code: str
    message: str
    retryable: bool


class TimingsAnswer(TypedDict):
    """Milliseconds in each phase; `denoise_ms` is shared with the images of other requests in the same batch."""

    queued_ms: float
    encode_ms: float
    denoise_ms: float
    decode_ms: float
    total_ms: float


class Answer(TypedDict):
    """The images, the model that made them, and complete `parameters`: with the same uploads they give the same images.

    `effective_prompt` is the prompt with the style applied. `failures` is present if some images could not be made, or
    were filtered.
    """

    id: str
    model: str
    images: list[ImageAnswer]
    effective_prompt: str
    parameters: dict[str, Any]
    timings: TimingsAnswer
    cached: bool
    failures: NotRequired[list[FailureAnswer]]


def answer_of(result: Result) -> Answer:
    """The JSON answer."""
    answer = Answer(
        id=result.id,
        model=result.model,
        images=[image_answer(image) for image in result.images],
        effective_prompt=result.effective_prompt,
        parameters=_parameters(result.parameters),
        timings=timings_answer(result.timings),
        cached=result.source == "cache",
    )
    if result.failures:
        answer["failures"] = [failure_answer(failure) for failure in result.failures]
    return answer


def _parameters(params: GenerationParams) -> dict[str, Any]:
    """All parameters that decide the pixels, without those that most requests do not use, unless this one does."""
    unused = {name for name in _RARE if getattr(params, name) == GenerationParams.model_fields[name].default}
    return params.model_dump(exclude=unused | SERVICE_FIELDS)


def image_answer(image: ImageDone) -> ImageAnswer:
    """An image, for JSON."""
    answer = ImageAnswer(
        index=image.index,
        seed=image.seed,
        format=image.format,
        width=image.width,
        height=image.height,
        data=base64.b64encode(image.data).decode(),
    )
    if image.safety is not None:
        answer["safety"] = safety_answer(image.safety)
    if image.continued is not None:
        answer["continued"] = continuation_answer(image.continued)
    return answer


def continuation_answer(continued: Continuation) -> ContinuationAnswer:
    """What an image has begun from, for JSON."""
    return ContinuationAnswer(steps=continued.steps, distance=round(continued.distance, 6))


def safety_answer(finding: Finding) -> SafetyAnswer:
    """What was found in an image, for JSON."""
    score = None if finding.status == "unchecked" else round(finding.score, 4)
    return SafetyAnswer(status=finding.status, category=finding.category, score=score)


def failure_answer(failure: ImageFailed) -> FailureAnswer:
    """A failed image, for JSON."""
    error = failure.error
    return FailureAnswer(
        index=failure.index,
        status="filtered" if is_filtered(failure) else "failed",
        code=error.code,
        message=error.message,
        retryable=error.retryable,
    )


def timings_answer(timings: Timings) -> TimingsAnswer:
    """The timings, rounded to a tenth of a millisecond."""
    return TimingsAnswer(
        queued_ms=round(timings.queued_ms, 1),
        encode_ms=round(timings.encode_ms, 1),
        denoise_ms=round(timings.denoise_ms, 1),
        decode_ms=round(timings.decode_ms, 1),
        total_ms=round(timings.total_ms, 1),
    )


def server_timing(timings: Timings) -> str:
    """The Server-Timing header, which browsers show beside a request."""
    phases = {
        "queued": timings.queued_ms,
        "encode": timings.encode_ms,
        "denoise": timings.denoise_ms,
        "decode": timings.decode_ms,
        "total": timings.total_ms,
    }
    return ", ".join(f"{phase};dur={milliseconds:.1f}" for phase, milliseconds in phases.items())

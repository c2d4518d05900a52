"""Requests whose pictures are labelled, and an engine's part of that."""

from collections.abc import Sequence
from typing import Any

from deployments.engine.protocol.events import Accepted, Finished, ImageDone
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from deployments.engine.steps.compression import compress_picture
from tests.deployments.watermark.pictures import photo
from tests.serve_app.fakes import TIMINGS, Step

SIDE = 320


def request_of(uploads: Uploads | None = None, **more: Any) -> Request:
    fields: dict[str, Any] = {
        "prompt": "a red cup",
        "negative_prompt": "text",
        "width": SIDE,
        "height": SIDE,
        "num_inference_steps": 20,
        "seed": 7,
        "sampler": "euler_a",
        "model_name": "tiny",
    }
    return Request("r", GenerationParams.model_validate({**fields, **more}), uploads=uploads, name="r")


def image_of(request: Request, index: int = 0) -> ImageDone:
    """An image as a replica gives it out: compressed as asked, and marked if the request says so."""
    params = request.params
    assert params.width
    assert params.height
    file = compress_picture(
        photo(max(params.width, params.height))[: params.height, : params.width], request, is_preview=False
    )
    return ImageDone(request.id, index, request.seed_of(index), params.output_format, params.width, params.height, file)


def photos(request: Request) -> Sequence[Step]:
    """Every image of a request, at once."""
    images = [image_of(request, index) for index in range(request.params.num_images)]
    return [Accepted(request.id, 0, steps=2), *images, Finished(request.id, TIMINGS)]

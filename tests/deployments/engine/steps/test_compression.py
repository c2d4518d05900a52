"""A picture is compressed as asked; a mark is made in it, but never in what an inpaint request gives back unchanged."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.engine.protocol.inputs import ImageArray, Inputs
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import NO_INPUTS, Request
from deployments.engine.steps.compression import compress_picture
from serve_app.image_processor import ImageProcessor

PICTURE = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)


class Brighten:
    """A mark that can be seen."""

    def apply(self, picture: ImageArray) -> ImageArray:
        return np.bitwise_or(picture, np.uint8(1))


def request_of(inputs: Inputs = NO_INPUTS, *, marked: bool = True, **params: Any) -> Request:
    asked = GenerationParams.model_validate({"prompt": "", **params})
    return Request("r", asked, inputs=inputs, mark=Brighten() if marked else None)


def compressed(request: Request, *, is_preview: bool = False) -> ImageArray:
    return np.asarray(Image.open(io.BytesIO(compress_picture(PICTURE, request, is_preview=is_preview))))


def test_a_finished_picture_is_marked_if_its_request_says_so() -> None:
    assert np.array_equal(compressed(request_of()), PICTURE | 1)
    assert np.array_equal(compressed(request_of(marked=False)), PICTURE)


def test_a_preview_is_not_marked() -> None:
    files = [compress_picture(PICTURE, request_of(marked=marked), is_preview=True) for marked in (True, False)]
    assert files[0] == files[1]


def test_what_is_not_repainted_is_not_marked() -> None:
    image = np.full((64, 64, 3), 90, np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    made = compressed(request_of(Inputs(image, mask)))
    assert np.array_equal(made[:, :32], image[:, :32])
    assert np.array_equal(made[:, 33:], (PICTURE | 1)[:, 33:])


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_a_lossy_file_is_of_the_quality_that_was_asked_for(output_format: str) -> None:
    requests = [request_of(output_format=output_format, output_quality=quality) for quality in (1, 60, None, 100)]
    sizes = [len(compress_picture(PICTURE, request, is_preview=False)) for request in requests]
    assert sizes == sorted(set(sizes))


TOUCHED_UP: dict[str, Any] = {"local_contrast": 2.0, "contrast": 1.4, "sharpen": 1.2}


@pytest.mark.parametrize("names", [("sharpen",), ("contrast",), ("local_contrast",), tuple(TOUCHED_UP)])
def test_a_picture_is_touched_up_as_by_hand_and_marked_afterwards(names: tuple[str, ...]) -> None:
    by_hand = {
        "local_contrast": lambda image: ImageProcessor().stretch_contrast(image, 2.0),
        "contrast": lambda image: ImageProcessor().adjust_contrast(image, 1.4),
        "sharpen": lambda image: ImageProcessor().sharpen(image, 1.2),
    }
    image = Image.fromarray(PICTURE)
    for name in TOUCHED_UP:
        image = by_hand[name](image) if name in names else image
    asked = {name: TOUCHED_UP[name] for name in names}
    assert np.array_equal(compressed(request_of(**asked)), np.asarray(image) | 1)
    assert not np.array_equal(np.asarray(image), PICTURE)
    files = [compress_picture(PICTURE, request_of(**more), is_preview=True) for more in (asked, {})]
    assert files[0] == files[1]


def test_what_is_not_repainted_is_not_touched_up() -> None:
    image = np.full((64, 64, 3), 90, np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    made = compressed(request_of(Inputs(image, mask), **TOUCHED_UP))
    assert np.array_equal(made[:, :32], image[:, :32])
    assert not np.array_equal(made[:, 33:], (PICTURE | 1)[:, 33:])

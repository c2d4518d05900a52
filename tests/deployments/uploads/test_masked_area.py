"""The masked area of an image: where it is, what it is filled with, and that it comes back where it was."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from deployments.annotators.catalogue import Annotators
from deployments.engine.conditioning.compositing import paste
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Inputs, Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.settings import ControlSettings
from deployments.uploads.intake import decode_uploads
from deployments.uploads.masked_area import crop_to_mask, fill_mask, find_box

Pixels = NDArray[np.uint8]


def file_of(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def gradient(height: int, width: int) -> Pixels:
    down, across = np.mgrid[0:height, 0:width]
    return np.stack([down % 256, across % 256, (down + across) % 256], axis=2).astype(np.uint8)


def mask_of(height: int, width: int, box: tuple[int, int, int, int]) -> Pixels:
    left, top, right, bottom = box
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def decode(image: Pixels, mask: Pixels, **asked: Any) -> Request:
    given: dict[str, Any] = {"prompt": "a cup", "seed": 1, "model_name": "tiny", "width": 64, "height": 64} | asked
    uploads = Uploads(image=file_of(image), mask=file_of(mask))
    return decode_uploads(Request("r1", GenerationParams(**given), uploads=uploads), Annotators())


@st.composite
def masks(draw: st.DrawFn) -> Pixels:
    height, width = draw(st.integers(16, 90)), draw(st.integers(16, 90))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return mask_of(height, width, (left, top, right, bottom))


@given(masks(), st.sampled_from([(64, 64), (128, 64), (64, 96)]), st.integers(0, 40))
def test_the_box_is_that_of_diffusers(mask: Pixels, size: tuple[int, int], padding: int) -> None:
    reference = VaeImageProcessor.get_crop_region(Image.fromarray(mask), *size, pad=padding)
    assert find_box(mask, size, padding) == reference


def test_only_the_masked_part_is_made_and_the_rest_comes_back_to_the_byte() -> None:
    image, mask = gradient(200, 300), mask_of(200, 300, (100, 50, 140, 90))
    request = decode(image, mask, padding_mask_crop=12)
    made, around = request.inputs.image, request.inputs.whole
    assert made is not None
    assert around is not None
    assert made.shape == (64, 64, 3)
    assert around.box == (88, 38, 152, 102)
    assert (made == image[38:102, 88:152]).all()
    assert request.picture_size == (300, 200)
    pasted = paste(np.zeros_like(made), around, 0)
    assert (pasted[mask == 0] == image[mask == 0]).all()
    assert not pasted[mask > 0].any()


def test_a_part_is_pasted_back_where_it_was_whatever_its_shape() -> None:
    # Wider than the image is high: the box cannot have the shape of what is made.
    image, mask = gradient(60, 200), mask_of(60, 200, (10, 5, 190, 55))
    inputs = crop_to_mask(image, mask, (64, 64), 0)
    assert inputs.image is not None
    assert inputs.whole is not None
    back = paste(inputs.image, inputs.whole, 0)
    # Shrunk to a third and enlarged again: the gradients, apart from where they wrap, are where they were.
    assert np.median(np.abs(back.astype(int) - image)) <= 3


def test_a_masks_meaning_can_be_turned_round() -> None:
    image, mask = gradient(64, 64), mask_of(64, 64, (0, 0, 32, 64))
    straight, inverted = decode(image, mask).inputs.mask, decode(image, mask, mask_inverted=True).inputs.mask
    assert straight is not None
    assert inverted is not None
    assert (inverted == 255 - straight).all()


def test_a_mask_that_leaves_nothing_to_paint_is_refused_when_turned_round_too() -> None:
    with pytest.raises(InvalidParameter, match="where the image is kept"):
        decode(gradient(64, 64), np.full((64, 64), 255, np.uint8), mask_inverted=True)


def test_a_filled_mask_has_the_colours_around_it_and_nothing_of_what_was_there() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32], image[:, 32:] = (200, 0, 0), (0, 0, 200)
    mask = mask_of(64, 64, (16, 16, 48, 48))
    image[mask > 0] = 255
    filled = fill_mask(Inputs(image, mask))
    assert filled.image is not None
    assert filled.whole is not None
    assert (filled.image[mask == 0] == image[mask == 0]).all()
    assert not filled.image[:, :, 1].any()  # the white that was there has gone
    left, right = filled.image[32, 17], filled.image[32, 46]
    assert left[0] > 2 * left[2]
    assert right[2] > 2 * right[0]
    # What is kept is the caller's own image.
    assert filled.whole.image is image


def test_a_mask_of_everything_has_no_surroundings_and_stays() -> None:
    inputs = Inputs(gradient(64, 64), np.full((64, 64), 255, np.uint8))
    assert fill_mask(inputs) is inputs


def test_filling_and_cropping_go_together() -> None:
    image, mask = gradient(200, 300), mask_of(200, 300, (100, 50, 140, 90))
    inputs = decode(image, mask, padding_mask_crop=12, mask_fill="surroundings").inputs
    assert inputs.image is not None
    assert inputs.whole is not None
    assert (inputs.whole.image == image).all()
    assert (inputs.image != image[38:102, 88:152]).any()


def test_a_hint_is_cropped_with_the_image_that_it_belongs_to() -> None:
    image, mask = gradient(200, 300), mask_of(200, 300, (100, 50, 140, 90))
    request = decode(image, mask, padding_mask_crop=12)
    assert request.inputs.whole is not None
    params = request.params.model_copy(update={"controls": (ControlSettings(type="canny"),)})
    uploads = Uploads(image=file_of(image), mask=file_of(mask), hints=(file_of(image),))
    (hint,) = decode_uploads(replace(request, params=params, uploads=uploads), Annotators()).inputs.hints
    assert (hint == image[38:102, 88:152]).all()

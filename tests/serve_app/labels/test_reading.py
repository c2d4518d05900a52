"""What counts as a word of a machine that made a picture, and whose word it is."""

import pytest

from deployments.watermark.methods import Watermark
from deployments.watermark.spread_spectrum import SpreadSpectrum
from serve_app.config.labels import DEFAULT_PAYLOAD
from serve_app.labels.file_metadata import FileTexts, add_texts
from serve_app.labels.reading import LabelReader
from tests.deployments.watermark.pictures import photo
from tests.serve_app.labels.files import file_of
from tests.serve_app.labels.test_labeller import as_png

READER = LabelReader(None, None)


def saying(code: str) -> bytes:
    xmp = f'<x DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{code}"/>'
    return add_texts(file_of("png"), FileTexts(xmp=xmp.encode()))


@pytest.mark.parametrize(
    ("code", "is_ai_made"),
    [
        ("trainedAlgorithmicMedia", True),
        ("compositeWithTrainedAlgorithmicMedia", True),
        ("compositeSynthetic", True),
        # A photo that was sharpened, say: its essence is a camera's.
        ("algorithmicallyEnhanced", False),
        ("algorithmicMedia", False),
        ("digitalCapture", False),
        ("minorHumanEdits", False),
    ],
)
def test_only_codes_of_what_a_model_had_a_part_in_count(code: str, is_ai_made: bool) -> None:
    found = READER.read(saying(code), "image")
    assert (found.source_type, found.is_ai_made) == (code, is_ai_made)
    assert (found.ai_source_type is not None) == is_ai_made


@pytest.mark.parametrize(
    ("parameters", "is_ai_made"),
    [
        ("a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 3", True),
        ("Steps: 1, to the left, Seed: none, of: it", False),
        ("a cat", False),
    ],
)
def test_parameters_count_where_they_are_a_diffusion_model_s(parameters: str, is_ai_made: bool) -> None:
    assert READER.read(add_texts(file_of("jpeg"), FileTexts(parameters)), "image").is_ai_made == is_ai_made


@pytest.mark.parametrize(
    ("ours", "found", "is_ours"),
    [
        ("61626364", "61626364", True),
        ("61626364", DEFAULT_PAYLOAD, False),
        (DEFAULT_PAYLOAD, "61626364", False),
        (DEFAULT_PAYLOAD, DEFAULT_PAYLOAD, None),
        (None, DEFAULT_PAYLOAD, False),
    ],
)
def test_a_mark_is_ours_if_no_other_server_makes_it(ours: str | None, found: str, is_ours: bool | None) -> None:
    reader = LabelReader(None, None if ours is None else Watermark(bytes.fromhex(ours)))
    marked = SpreadSpectrum().mark(photo(320), bytes.fromhex(found))
    label = reader.read(as_png(marked), "image")
    assert label.mark is not None
    assert (label.mark.payload.hex(), label.marked_here) == (found, is_ours)

"""What a file says depends on the request and the configuration, and on nothing else."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from deployments.engine.protocol.inputs import ImageArray, Uploads
from deployments.engine.steps.compression import encode_image
from deployments.watermark.spread_spectrum import SpreadSpectrum
from serve_app.config.errors import ConfigError
from serve_app.config.labels import NO_LABELS, TEXTS_ONLY, LabelsConfig, SigningConfig, WatermarkConfig
from serve_app.labels.file_metadata import FileTexts, add_texts, read_texts
from serve_app.labels.labeller import Labeller
from serve_app.labels.manifests import ManifestReader, ManifestSigner, Provenance
from serve_app.labels.parameters_text import parse_parameters
from serve_app.labels.source_type import CHANGED, MADE, read_source_type
from tests.deployments.watermark.pictures import photo, resized
from tests.serve_app.labels.files import FORMATS, file_of, pixels_of
from tests.serve_app.labels.requests import SIDE, image_of, request_of

ALL = Labeller(LabelsConfig())
READER = ManifestReader()

every_format = pytest.mark.parametrize("output_format", FORMATS)


@every_format
def test_a_file_says_how_it_was_made_and_that_a_machine_made_it(output_format: str) -> None:
    request = request_of(output_format=output_format, num_images=3)
    file = ALL.label(image_of(request, 2), request).data
    texts = read_texts(file)
    assert texts.parameters is not None
    fields = parse_parameters(texts.parameters)
    assert (fields["Prompt"], fields["Negative prompt"], fields["Seed"]) == ("a red cup", "text", "9")
    assert texts.xmp is not None
    assert read_source_type(texts.xmp) == MADE
    assert READER.read(file).state == "valid"


@every_format
def test_minimal_metadata_has_no_word_of_the_prompts_and_none_has_nothing(output_format: str) -> None:
    for metadata in ("minimal", "none"):
        request = request_of(output_format=output_format, metadata=metadata)
        file = ALL.label(image_of(request), request).data
        assert b"red cup" not in file
        assert "red cup".encode("utf-16-be") not in file
        texts = read_texts(file)
        assert (texts.parameters is None) == (metadata == "none")
        # Whatever else is left out, this stays.
        assert texts.xmp is not None
        assert READER.read(file).source_types == (MADE,)


def test_the_operator_decides_for_requests_that_do_not() -> None:
    quiet = Labeller(TEXTS_ONLY.model_copy(update={"metadata": "none"}))
    for metadata, has_text in ((None, False), ("full", True)):
        request = request_of(metadata=metadata)
        assert (read_texts(quiet.label(image_of(request), request).data).parameters is not None) == has_text


def test_a_changed_picture_says_so_and_is_no_made_one() -> None:
    request = request_of(Uploads(image=file_of("png"), hints=(file_of("jpeg"),)), strength=0.5)
    file = ALL.label(image_of(request), request).data
    texts, report = read_texts(file), READER.read(file)
    assert texts.xmp is not None
    assert read_source_type(texts.xmp) == CHANGED
    assert (report.source_types, report.ingredients) == ((CHANGED,), 2)


def test_hints_do_not_make_it_a_changed_one() -> None:
    request = request_of(Uploads(hints=(file_of("png"),), preprocess=True), controls=[{"type": "canny"}])
    file = ALL.label(image_of(request), request).data
    texts = read_texts(file)
    assert texts.parameters is not None
    assert "Module: canny" in parse_parameters(texts.parameters)["ControlNet 0"]
    assert READER.read(file).source_types == (MADE,)


def test_references_are_inputs_of_what_was_made_and_no_parents() -> None:
    uploads = Uploads(references=(file_of("png"), file_of("jpeg")))
    request = request_of(uploads, reference={"adapter": "style", "scale": 0.5})
    file = ALL.label(image_of(request), request).data
    texts, report = read_texts(file), READER.read(file)
    assert texts.parameters is not None
    assert "Model: style" in parse_parameters(texts.parameters)["ControlNet 0"]
    assert (report.source_types, report.actions[0], report.ingredients) == ((MADE,), "c2pa.created", 2)


def test_without_labels_a_file_is_what_the_engine_made() -> None:
    labeller, request = Labeller(NO_LABELS), request_of()
    image = image_of(request)
    assert labeller.label(image, request) == image
    assert labeller.mark is None


def test_a_prompt_that_a_jpeg_cannot_hold_is_left_out() -> None:
    request = request_of(prompt="🏆" * 8000, negative_prompt="🏆" * 8000, output_format="jpeg")
    texts = read_texts(ALL.label(image_of(request), request).data)
    assert texts.parameters is not None
    assert parse_parameters(texts.parameters)["Prompt"] == ""


def as_png(picture: ImageArray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


PHOTO = photo(SIDE)
PRIVATE = b'<x xmp:Nick="Secret" DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/%s"/>'
PARAMETERS = "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 320x320"
MARKED = replace(request_of(), mark=ALL.mark)
ORIGINALS = {
    "ours": ALL.label(image_of(MARKED), MARKED).data,
    "another's XMP": add_texts(as_png(PHOTO), FileTexts(xmp=PRIVATE % b"trainedAlgorithmicMedia")),
    "another's manifest": ManifestSigner(SigningConfig()).sign(as_png(PHOTO), Provenance(MADE)),
    "a mark and nothing else": as_png(SpreadSpectrum().mark(PHOTO, b"else")),
    "how A1111 made it": add_texts(as_png(PHOTO), FileTexts(PARAMETERS)),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_what_says_that_a_machine_made_a_picture_stays_when_it_is_enlarged(name: str) -> None:
    original, enlarged = ORIGINALS[name], as_png(resized(PHOTO, 480, 480))
    made = ALL.label_enlarged(enlarged, original, by_network=False)
    found = ALL.reader.read(made, "image")
    assert (found.source_type, found.manifest.source_types, found.signed_here) == (MADE, (MADE,), True)
    assert found.manifest.actions[:2] == ("c2pa.opened", "c2pa.resized")
    assert ("c2pa.watermarked.unbound" in found.manifest.actions) == (found.mark is not None) == (name == "ours")
    assert found.texts.parameters == read_texts(original).parameters
    assert b"Secret" not in made
    # Without a key, the texts are there all the same.
    unsigned = Labeller().label_enlarged(enlarged, original, by_network=False)
    assert Labeller().reader.read(unsigned, "image").source_type == MADE


@every_format
def test_a_changed_picture_stays_a_changed_one_when_it_is_enlarged(output_format: str) -> None:
    request = request_of(Uploads(image=file_of("png")), strength=0.5, output_format=output_format)
    first = ALL.label(image_of(request), request).data
    found = ALL.reader.read(ALL.label_enlarged(as_png(PHOTO), first, by_network=False), "image")
    assert (found.source_type, found.manifest.ingredients) == (CHANGED, 1)


def test_a_photo_is_labelled_only_where_a_network_has_enlarged_it() -> None:
    original, enlarged = file_of("jpeg"), as_png(PHOTO)
    assert ALL.label_enlarged(enlarged, original, by_network=False) == enlarged
    found = ALL.reader.read(ALL.label_enlarged(enlarged, original, by_network=True), "image")
    assert (found.source_type, found.manifest.actions[:2]) == (CHANGED, ("c2pa.opened", "c2pa.edited"))


@pytest.mark.parametrize("transparent", [False, True])
def test_our_own_mark_is_made_again_and_another_s_is_not_replaced(transparent: bool) -> None:
    # Another picture: nothing is left of the first mark in it.
    enlarged = Image.fromarray(photo(512, 3))
    if transparent:
        enlarged.putalpha(128)
    buffer = io.BytesIO()
    enlarged.save(buffer, "PNG")
    ours = ALL.reader.read(ALL.label_enlarged(buffer.getvalue(), ORIGINALS["ours"], by_network=False), "image")
    if transparent:
        with Image.open(io.BytesIO(ALL.label_enlarged(buffer.getvalue(), ORIGINALS["ours"], by_network=False))) as made:
            assert made.getchannel("A").getextrema() == (128, 128)
    else:
        assert ours.mark is not None
        assert ours.mark.payload == b"DRKM"
    others = ALL.label_enlarged(buffer.getvalue(), ORIGINALS["a mark and nothing else"], by_network=False)
    assert ALL.reader.read(others, "image").mark is None


@every_format
def test_an_enlarged_picture_is_labelled_in_whatever_format_it_is_saved(output_format: str) -> None:
    def save(png: bytes) -> bytes:
        return encode_image(pixels_of(png), output_format)  # type: ignore[arg-type]

    made = ALL.label_enlarged(as_png(PHOTO), ORIGINALS["ours"], by_network=False, save=save)
    found = ALL.reader.read(made, "image")
    assert (found.header.format.lower(), found.source_type, found.signed_here) == (output_format, MADE, True)
    assert found.mark is not None
    assert found.texts.parameters
    long = add_texts(as_png(PHOTO), FileTexts(PARAMETERS + ", X: " + "x" * 60_000))
    kept = ALL.reader.read(ALL.label_enlarged(as_png(PHOTO), long, by_network=False, save=save), "image")
    assert (kept.texts.parameters is None) == (output_format == "jpeg")
    assert kept.signed_here


def test_a_marked_picture_that_is_enlarged_is_found_to_be_marked() -> None:
    marked = np.asarray(Image.open(io.BytesIO(ORIGINALS["ours"])))
    for side in (480, 640, 1000):
        made = ALL.label_enlarged(as_png(resized(marked, side, side)), ORIGINALS["ours"], by_network=False)
        mark = ALL.reader.read(made, "image").mark
        assert mark is not None, side
        assert mark.payload == b"DRKM"


def test_other_labels_are_another_setting() -> None:
    configs = (
        LabelsConfig(),
        TEXTS_ONLY,
        NO_LABELS,
        LabelsConfig(metadata="none"),
        LabelsConfig(watermark=WatermarkConfig(payload="00000000")),
        LabelsConfig(c2pa=SigningConfig(enabled=False)),
    )
    assert len({Labeller(config).setting for config in configs}) == len(configs)
    assert Labeller(LabelsConfig()).setting == ALL.setting
    shared = [Labeller(LabelsConfig(), secret).setting for secret in (b"s" * 32, b"s" * 32, b"t" * 32)]
    assert shared[0] == shared[1] != shared[2]


def test_health_is_told_what_signs() -> None:
    said = ALL.describe()
    assert (said["source_type"], said["watermark"]) == (True, True)
    assert said["c2pa"]["certificate"] == "development, not trusted"
    assert said["c2pa"]["private_key"] == "drawn at this start"
    shared = Labeller(LabelsConfig(), b"s" * 32).describe()["c2pa"]
    assert (shared["certificate"], shared["private_key"]) == ("development, not trusted", "derived from redis.key")
    assert Labeller(NO_LABELS).describe() == {"source_type": False, "watermark": False, "c2pa": None}


def test_a_method_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"labels\.watermark\.method"):
        Labeller(LabelsConfig(watermark=WatermarkConfig(method="nowhere:Nothing")))

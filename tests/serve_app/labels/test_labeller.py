"""What a file says depends on the request and the configuration, and on nothing else."""

import pytest

from deployments.engine.protocol.inputs import Uploads
from serve_app.config.errors import ConfigError
from serve_app.config.labels import NO_LABELS, TEXTS_ONLY, LabelsConfig, SigningConfig, WatermarkConfig
from serve_app.labels.file_metadata import read_texts
from serve_app.labels.labeller import Labeller
from serve_app.labels.manifests import ManifestReader
from serve_app.labels.parameters_text import parse_parameters
from serve_app.labels.source_type import CHANGED, MADE, read_source_type
from tests.serve_app.labels.files import FORMATS, file_of
from tests.serve_app.labels.requests import image_of, request_of

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


@every_format
def test_what_is_made_of_a_labelled_picture_can_be_labelled_like_it(output_format: str) -> None:
    request = request_of(Uploads(image=file_of("png")), strength=0.5)
    first = ALL.label(image_of(request), request).data
    second = ALL.label_enlarged(file_of(output_format), first, by_network=False)
    assert read_texts(second) == read_texts(first)
    report = READER.read(second)
    assert (report.state, report.source_types, report.ingredients) == ("valid", (CHANGED,), 1)
    assert read_texts(Labeller().label_enlarged(file_of(output_format), first, by_network=True)).parameters


def test_a_photo_is_labelled_only_where_a_network_has_enlarged_it() -> None:
    photo = file_of("png")
    assert ALL.label_enlarged(photo, photo, by_network=False) == photo
    report = READER.read(ALL.label_enlarged(photo, photo, by_network=True))
    assert (report.state, report.source_types, report.ingredients) == ("valid", (CHANGED,), 1)


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


def test_health_is_told_what_signs() -> None:
    said = ALL.describe()
    assert (said["source_type"], said["watermark"]) == (True, True)
    assert said["c2pa"]["certificate"] == "development, not trusted"
    assert Labeller(NO_LABELS).describe() == {"source_type": False, "watermark": False, "c2pa": None}


def test_a_method_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"labels\.watermark\.method"):
        Labeller(LabelsConfig(watermark=WatermarkConfig(method="nowhere:Nothing")))

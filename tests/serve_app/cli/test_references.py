"""Reference images on the command line."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from deployments.engine.protocol.settings import ReferenceSettings
from serve_app.cli.exits import EXIT_USAGE
from serve_app.cli.main import app
from tests.serve_app.cli.test_scripting import completed
from tests.serve_app.fakes import STYLED, TWO_STYLES, FakeBackend


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(models=(STYLED, TWO_STYLES))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_pictures_to_take_after_are_files_and_how_much_is_an_option(
    url: str, backend: FakeBackend, photo: str, tmp_path: Path
) -> None:
    here = ("-o", str(tmp_path / "made.png"), "--url", url, "--reference", photo)
    assert run("generate", "a cup", *here, "--reference", photo).exit_code == 0
    how = ("--reference-scale", "0.5", "--reference-start", "0.1", "--reference-end", "0.8")
    assert run("img2img", photo, "a cup", *here, *how, "--reference-adapter", "style").exit_code == 0
    first, second = backend.asked
    assert first.uploads is not None
    assert second.uploads is not None
    assert (len(first.uploads.references), first.uploads.task) == (2, "text-to-image")
    assert (len(second.uploads.references), second.uploads.task) == (1, "image-to-image")
    assert first.params.reference == ReferenceSettings(adapter="style")
    assert second.params.reference == ReferenceSettings(adapter="style", scale=0.5, start=0.1, end=0.8)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--reference", "gone.png"), "reference"),
        (("--reference-scale", "3"), "reference_scale"),
        (("--reference-start", "0.8", "--reference-end", "0.2"), "reference"),
    ],
)
def test_a_slip_is_told_without_a_server(options: tuple[str, ...], field: str, tmp_path: Path) -> None:
    result = run("generate", "a cup", "-o", str(tmp_path / "made.png"), *options)
    assert result.exit_code == EXIT_USAGE
    assert result.output.startswith(f"darkroom: {field}: ")


def test_what_the_server_refuses_names_the_option(url: str, photo: str, tmp_path: Path) -> None:
    here = ("-o", str(tmp_path / "made.png"), "--url", url)
    result = run("generate", "a cup", *here, "--reference-scale", "1")
    assert (result.exit_code, result.output.startswith("darkroom: reference: ")) == (EXIT_USAGE, True)
    several = run("generate", "a cup", *here, "--reference", photo, "--model", "two-styles")
    assert "several: style, face" in several.output


def test_adapters_are_completed_from_the_models_that_have_them(url: str) -> None:
    here = {"DARKROOM_URL": url}
    assert completed("darkroom generate x --reference-adapter ", "bash", **here).split() == ["style", "face"]
    one = completed("darkroom generate x --model styled --reference-adapter ", "bash", **here)
    assert one.split() == ["style"]

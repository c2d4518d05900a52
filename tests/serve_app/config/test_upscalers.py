"""The `upscalers` section: what it names is loaded by every replica, or refused before anything is started."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.engine.protocol.spec import UpscalerSpec
from serve_app.cli.main import app
from serve_app.config.errors import ConfigError
from serve_app.config.server import load_config
from tests.deployments.engine.upscaling.networks import save_upscaler

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config_of(tmp_path: Path, *rows: str) -> Path:
    file = tmp_path / "own.yaml"
    file.write_text("extends: demo\nupscalers:\n" + "".join(f"  - {row}\n" for row in rows))
    return file


def test_rows_are_files_or_pinned_repositories(tmp_path: Path) -> None:
    rows = ("{name: 4x one, source: /a/one.safetensors}", f"{{name: two, source: a/b, revision: {COMMIT}, file: x}}")
    config = load_config(config_of(tmp_path, *rows))
    assert [row.spec() for row in config.upscalers] == [
        UpscalerSpec("4x one", "/a/one.safetensors"),
        UpscalerSpec("two", "a/b", COMMIT, "x"),
    ]


def test_other_networks_are_other_images(tmp_path: Path) -> None:
    first = load_config(config_of(tmp_path, "{name: one, source: /a/one.safetensors}")).numerics()
    second = load_config(config_of(tmp_path, "{name: one, source: /a/two.safetensors}")).numerics()
    assert first != second


def test_a_network_that_is_replaced_in_place_makes_other_images(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    config = load_config(config_of(tmp_path, f"{{name: one, source: {file}}}"))
    told = []
    for content in (b"before", b"behind"):
        file.write_bytes(content)
        told.append(config.numerics())
    assert told[0] != told[1]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (("{name: Lanczos, source: a.safetensors}",), "built in"),
        (("{name: a, source: a.safetensors}", "{name: a, source: b.safetensors}"), "'a' is taken"),
        (("{name: a, source: a.safetensors, scale: 4}",), "unknown key 'scale'"),
    ],
)
def test_names_are_free_and_keys_are_known(rows: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(config_of(tmp_path, *rows))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{name: a, source: /nowhere/a.safetensors}", "there is no file"),
        ("{name: a, source: someone/some}", "pin `revision`"),
        (f"{{name: a, source: someone/some, revision: {COMMIT}, file: a.pth}}", "pickled"),
        ("{name: a, source: .}", "is a folder"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_anything_is_fetched(row: str, said: str, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["fetch", "--config", str(config_of(tmp_path, row))])
    assert answer.exit_code == 2
    assert said in " ".join(answer.output.split())


def test_files_of_its_own_need_no_fetching(tmp_path: Path) -> None:
    spec = save_upscaler(tmp_path)
    row = f"{{name: {spec.name}, source: {spec.source}}}"
    answer = CliRunner().invoke(app, ["fetch", "--config", str(config_of(tmp_path, row))])
    assert answer.exit_code == 0
    assert "upscaler 'tiny x4' is here" in answer.output

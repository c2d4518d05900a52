"""Whatever a command is given, it says one line about it and exits with a documented code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deployments.engine.protocol.errors import InvalidParameter
from serve_app.cli.batch import read_requests
from serve_app.cli.exits import EXIT_CODES
from serve_app.cli.main import app
from tests.serve_app.servers import ROOT

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("arguments", "environment", "exit_code"),
    [
        (("list", "models", "--url", "http://a..b:1"), {}, 2),
        (("list", "models", "--url", "http://server.example"), {"ALL_PROXY": "socks5://127.0.0.1:1"}, 2),
        (("list", "models", "--url", "http://server.example"), {"SSL_CERT_FILE": "/gone.pem"}, 2),
        (("k8s", "render", "--folder", "nope"), {}, 2),
        (("serve", "--config", "dates.yaml"), {}, 2),
        (("train", "pictures", "--name", "a", "--trigger", "b", "--settings", "dates.yaml"), {}, 2),
        (("batch", "nan.jsonl", "-o", "made", "--url", NOWHERE), {}, 2),
        (("batch", "half.jsonl", "-o", "made", "--url", NOWHERE), {}, 2),
        (("batch", "deep.jsonl", "-o", "made", "--url", NOWHERE), {}, 2),
        (("batch", "fine.jsonl", "-o", "fine.jsonl", "--url", NOWHERE), {}, 2),
        (("generate", "a", "-o", "a.png", "--config", "demo", "--url", NOWHERE), {}, 2),
        (("generate", "\udcff", "-o", "a.png", "--url", NOWHERE), {}, 2),
        (("generate", "a", "-o", "\udcff/a.png", "--url", NOWHERE), {}, 2),
        (("control", "photo.png", "a", "-o", "a.png", "--scale", "nan", "--url", NOWHERE), {}, 2),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...],
    environment: dict[str, str],
    exit_code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "dates.yaml").write_text("seed: 2024-13-45\n")
    (tmp_path / "nan.jsonl").write_text('{"prompt": "a", "guidance_scale": NaN}\n')
    (tmp_path / "half.jsonl").write_text('{"prompt": "\\ud800"}\n')
    (tmp_path / "deep.jsonl").write_text("[" * 99999)
    (tmp_path / "fine.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "photo.png").write_bytes(b"a picture")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == exit_code
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("darkroom: ")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode), url=st.text(max_size=30))
def test_every_file_and_address_is_one_line(content: bytes, url: str, tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_bytes(content)
    for arguments in (
        ("batch", str(tmp_path / "asked.jsonl"), "-o", str(tmp_path / "made"), "--url", NOWHERE),
        ("serve", "--config", str(tmp_path / "asked.jsonl"), "--host", "256.0.0.1"),
        ("list", "models", "--url", f"http:/{url}"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code in EXIT_CODES
        assert "Traceback" not in result.stderr


def test_every_json_text_is_read(tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_bytes('\ufeff{"prompt": "a\u2028b\u0085c"}\r\n\n{"prompt": "d"}'.encode())
    assert read_requests(file) == {1: {"prompt": "a\u2028b\u0085c"}, 3: {"prompt": "d"}}
    file.write_text('{"prompt": "a"}\n{"prompt": Infinity}')
    with pytest.raises(InvalidParameter, match="line 2"):
        read_requests(file)


NAMELESS = """
from serve_app.cli import main

main.app = lambda: print("\\udcff.png")
main.main()
"""

CHATTY = """
from serve_app.cli import exits, main


@main.app.command()
def chat():
    with exits.exit_on_errors():
        print("a", flush=True)


main.main()
"""


def test_a_name_that_is_no_text_is_printed() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-c", NAMELESS]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "\\udcff.png\n"


def test_a_reader_that_has_left_is_told_in_one_line() -> None:
    read, write = os.pipe()
    os.close(read)
    command, environment = [sys.executable, "-c", CHATTY, "chat"], os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (said.returncode, said.stderr) == (1, "darkroom: nobody reads standard output any more\n")

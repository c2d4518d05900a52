"""The examples of docs/batch-and-jobs.md, run as they stand; and every setting is told of there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.api.application import create_api
from serve_app.config.sections import JobsConfig
from serve_app.service import DiffusionService
from tests.serve_app.fakes import STYLED, TINY, FakeBackend, slow, success
from tests.serve_app.servers import http_server

PAGE = (Path(__file__).parents[3] / "docs" / "batch-and-jobs.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# What each block must print, and the pictures that it must leave behind.
SAYS: tuple[list[str], ...] = (
    ['"succeeded":2,"failed":0'],
    ["event: progress", "event: entry", '"status": 422', '"failed": 1'],
    ['"state":"queued"', "event: done", '"state":"succeeded"'],
    ['"entries":2', '"state":"queued"'],
    [],
    ['"cancelled":true', '"status":499'],
    ["succeeded", "False"],
    ["(seed 1)", "(seed 2)"],
)
LEAVES: tuple[list[str], ...] = (
    [],
    [],
    ["red-cup.png"],
    ["cup.png", "look.png", "shoe.png"],
    ["restyled-0.png", "restyled-1.png"],
    [],
    ["cup-0.png", "cup-1.png", "cup-2.png"],
    ["0001-0.png", "0002-0.png", "0002-1.png"],
)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_does_what_the_page_says(number: int, tmp_path: Path) -> None:
    language, code = BLOCKS[number]
    backend = FakeBackend(
        lambda request: slow(request) if request.params.num_images == 16 else success(request), models=(TINY, STYLED)
    )
    with http_server(create_api(DiffusionService(backend))) as url:
        code = code.replace("http://127.0.0.1:8000", url)
        command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    said = done.stdout.replace('"state":"running"', '"state":"queued"')
    assert [text for text in SAYS[number] if text not in said] == []
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == LEAVES[number]


def test_every_block_is_looked_at() -> None:
    assert len(BLOCKS) == len(SAYS) == len(LEAVES)


@pytest.mark.parametrize("name", JobsConfig.model_fields)
def test_every_setting_is_told_of(name: str) -> None:
    assert re.search(rf"^\| [^|]*`{name}`", PAGE, re.MULTILINE)

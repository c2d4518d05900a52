"""The README's code blocks, run as they stand, against a server started as the README says."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.serve_app.servers import Launched, ray_server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    with ray_server("demo", tmp_path_factory.mktemp("demo")) as launched:
        yield launched


def run(command: list[str], folder: Path, server: Launched) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "DARKROOM_URL": server.url}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.mark.parametrize(("language", "block"), BLOCKS, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(BLOCKS)])
def test_a_code_block_does_what_it_says(language: str, block: str, tmp_path: Path, server: Launched) -> None:
    code = block.replace("http://127.0.0.1:8000", server.url)
    run(["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code], tmp_path, server)
    pictures = sorted(path.name for path in tmp_path.iterdir())
    assert pictures == sorted(set(re.findall(r"(\w+\.png)", block)) or {"advertisement-0.png", "advertisement-1.png"})
    for name in pictures:
        assert picture(tmp_path / name).size == (256, 256)


def test_the_picture_shown_is_what_the_first_command_makes(tmp_path: Path, server: Launched) -> None:
    run(["bash", "-euc", BLOCKS[0][1].replace("http://127.0.0.1:8000", server.url)], tmp_path, server)
    made, shown = picture(tmp_path / "cup.png"), picture(ROOT / "docs" / "first-picture.png")
    worst = max(abs(a - b) for a, b in zip(made.tobytes(), shown.tobytes(), strict=True))
    # Machines round differently, and guidance amplifies it: the same picture, but not always to the bit.
    assert worst <= 8

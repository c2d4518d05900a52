"""Half a minute of `fuzz_images.py`: no mutation of a picture gets anything but a picture or a refusal."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="needs Atheris: Linux, and Python before 3.14")
def test_no_mutation_of_a_picture_gets_more_than_a_refusal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.hostile.fuzz_images", "--seconds", "30", "--corpus", str(tmp_path)]
    # libFuzzer limits the peak that the kernel tells, and a child begins with the peak of whoever started it, here of a
    # process that has run other tests. A shell between the two has a small one of its own.
    command = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DONE" in done.stderr

"""Bytes are counted as they would be taken: weights once, rows each, attention without its matrix."""

import json
import subprocess
import sys
from pathlib import Path


def test_a_true_size_model_fits_where_it_is_said_to() -> None:
    """In a process of its own: the bench changes torch's default precision."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu.footprint"], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    report = json.loads(done.stdout.splitlines()[-1])["report"]
    # The sizes of SD1.5's files in fp16: 1.72 + 0.17 + 0.25 GB.
    assert 1.9 < report["weights_gib"] < 2.1
    native, larger = report["sizes"]["512"], report["sizes"]["768"]
    # Tokens grow with the pixels, and nothing that is kept grows faster: scores would, with their square.
    assert 2.0 < larger["row_mib"] / native["row_mib"] < 2.4
    assert native["rows"]["L4"] < native["rows"]["A100 40 GB"] < native["rows"]["H100 80 GB"]
    assert larger["rows"]["L4"] >= 32

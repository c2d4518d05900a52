"""The Triton kernels compute what torch does, and compile to what a GPU reads fast. None of it needs a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deployments.engine.cuda.kernel_cases import NORMS, UPDATES, limit

ROOT = Path(__file__).parents[4]

LIMITS = {name: limit(case.dtype) for name, case in NORMS.items()} | {
    # The answer is fp32, whatever the UNet answers in.
    name: 1e-5
    for name in UPDATES
}
KERNELS = ("measure_slabs", "combine_slabs", "combine_slabs, wide", "normalize_pixels", "update_rows")

# By kernel: the accesses of activations and states, which are 16 bytes wide, in fp32 and in fp16.
WIDE_LOADS = {
    "measure_slabs": {"fp32": 4, "fp16": 2},
    # Of the activation, and of the weights and biases of its channels.
    "normalize_pixels": {"fp32": 6, "fp16": 4},
    # Twelve maps in fp32, and two answers.
    "update_rows": {"fp32": 26, "fp16": 24},
}
WIDE_STORES = {
    "normalize_pixels": {"fp32": 4, "fp16": 2},
    "update_rows": {"fp32": 16, "fp16": 16},
}


def run(program: str, *arguments: str, **environment: str) -> Any:
    module = f"tests.deployments.engine.cuda.{program}"
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def errors() -> Any:
    return run("interpret_kernels", TRITON_INTERPRET="1")


@pytest.fixture(scope="module", params=["80", "89", "90"])
def built(request: pytest.FixtureRequest) -> Any:
    return run("compile_kernels", request.param, TRITON_INTERPRET="0")


@pytest.mark.parametrize("name", LIMITS)
def test_a_kernel_computes_what_fp64_does(name: str, errors: Any) -> None:
    assert errors[name] < LIMITS[name]


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_spills_no_registers_on_any_gpu(name: str, kind: str, built: Any) -> None:
    assert built[f"{name}/{kind}"]["spilled"] == 0


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("name", WIDE_LOADS)
def test_activations_and_states_are_read_and_written_sixteen_bytes_at_a_time(name: str, kind: str, built: Any) -> None:
    accesses = built[f"{name}/{kind}"]["accesses"]
    assert accesses["ld.global.v4.b32"] == WIDE_LOADS[name][kind]
    assert accesses.get("st.global.v4.b32", 0) == WIDE_STORES.get(name, {kind: 0})[kind]

"""The bench fails where the figures do not reach what is asked of them, or are not there."""

from typing import Any

import pytest

from bench.gpu.gates import judge
from bench.gpu.parts import PARTS


def figures(
    full: float = 0.6, one: float = 0.4, ours: float = 4.0, theirs: float = 2.0, changed: float = 0.95
) -> dict[str, Any]:
    return {
        "unet_compiled": {"16": {"share": full}, "2": {"share": one}},
        "engine": {"50 steps": {"images_per_second": ours}},
        "diffusers_compiled_8": {"50 steps": {"images_per_second": theirs}},
        "loras": {"16": {"share": changed}},
    }


def passed(parts: dict[str, Any]) -> list[bool]:
    return [gate["passed"] for gate in judge(parts).values()]


def test_figures_that_reach_all_gates_pass() -> None:
    assert passed(figures()) == [True, True, True, True]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (figures(full=0.49), [False, True, True, True]),
        (figures(one=0.34), [True, False, True, True]),
        (figures(ours=2.9), [True, True, False, True]),
        (figures(changed=0.89), [True, True, True, False]),
    ],
)
def test_each_gate_is_judged_alone(parts: dict[str, Any], expected: list[bool]) -> None:
    assert passed(parts) == expected


@pytest.mark.parametrize("missing", [None, {}, {"16": {"failed": "TimeoutError"}}, {"16": {"share": None}}])
def test_what_could_not_be_measured_has_not_passed(missing: Any) -> None:
    assert passed(figures() | {"unet_compiled": missing}) == [False, False, True, True]


def test_only_what_was_to_be_measured_is_judged() -> None:
    assert judge({"gemm": {"tflops": 700.0}}) == {}
    assert set(judge(dict.fromkeys(PARTS))) == set(judge(figures()))

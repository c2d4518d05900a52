"""The memory plan's laws, with made-up figures. No torch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.memory_plan import AFTER_RUNNING_OUT, GIB, RESERVE, MemoryPlan, guess_images

SIZES = (1, 2, 4, 8, 16)
SMALL, LARGE = Bucket("m", 64, 64), Bucket("m", 128, 128)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plan(budget: int | None, fixed: int = 100, per_row: int = 50) -> MemoryPlan:
    """A plan that has seen calls of 1 and 2 rows of the small bucket."""
    made = MemoryPlan(budget, SIZES, Clock())
    for rows in (1, 2):
        made.record_peak("denoise", SMALL, rows, fixed + rows * per_row)
    return made


def test_without_a_budget_the_largest_size_fits() -> None:
    assert plan(None).rows(SMALL, held=10**15) == 16


def test_rows_fit_into_what_is_free_less_the_reserve() -> None:
    needed = 1000 + 100 + 8 * 50
    assert plan(round(needed / (1 - RESERVE)) + 1).rows(SMALL, held=1000) == 8
    assert plan(round(needed / (1 - RESERVE)) - 2).rows(SMALL, held=1000) == 4


def test_nothing_fits_into_nothing() -> None:
    assert plan(1000).rows(SMALL, held=900) == 0


def test_other_shapes_are_predicted_from_the_fit() -> None:
    made = plan(None)
    assert made.predict("denoise", LARGE, 8) == 4 * (100 + 8 * 50)


def test_reality_corrects_a_prediction() -> None:
    made = plan(None)
    made.record_peak("denoise", LARGE, 4, 5000)
    assert made.predict("denoise", LARGE, 4) == 5000
    assert made.predict("denoise", LARGE, 8) == 10_000
    made.record_peak("denoise", LARGE, 1, 2000)
    assert made.predict("denoise", LARGE, 8) == 9000


def test_controlnets_and_decoding_take_their_part() -> None:
    made = plan(10_000)
    bare = made.rows(SMALL, held=8000)
    made.record_peak("control", SMALL, 1, 200)
    assert made.rows(SMALL, held=8000, control_rows=4) < bare
    made.record_peak("decode", SMALL, 1, 10_000)
    assert made.rows(SMALL, held=8000) == 0


def test_a_size_that_ran_out_is_left_alone_for_a_while() -> None:
    clock = Clock()
    made = MemoryPlan(None, SIZES, clock)
    made.record_peak("denoise", SMALL, 1, 1)
    made.record_out_of_memory(SMALL, 8)
    assert made.rows(SMALL, held=0) == 4
    assert made.rows(LARGE, held=0) == 16
    clock.now += AFTER_RUNNING_OUT + 1
    assert made.rows(SMALL, held=0) == 16


def test_before_anything_is_measured_the_guides_table_counts() -> None:
    assert [guess_images(gib * GIB) for gib in (8, 16, 24, 80)] == [1, 2, 4, 4]
    assert MemoryPlan(16 * GIB, SIZES).rows(SMALL, held=0) == 4
    # It bounds how many share a call, and forbids nobody to try what he needs alone.
    assert MemoryPlan(16 * GIB, SIZES).rows(SMALL, held=0, least=16) == 16


def test_the_figures_show_plan_and_reality() -> None:
    made = plan(None)
    made.record_peak("denoise", SMALL, 4, 290)
    figures = made.figures()
    assert {(rows, measured) for (_, _, rows), (measured, _) in figures.items()} == {(1, 150), (2, 200), (4, 290)}
    assert all(abs(planned - measured) <= 10 for measured, planned in figures.values())


@given(
    budget=st.integers(1, 10**6),
    held=st.integers(0, 10**6),
    fixed=st.integers(0, 10**4),
    per_row=st.integers(0, 10**4),
)
def test_what_is_planned_never_exceeds_the_limit(budget: int, held: int, fixed: int, per_row: int) -> None:
    made = plan(budget, fixed, per_row)
    rows = made.rows(SMALL, held)
    assert rows == 0 or held + made.call_bytes(SMALL, rows) <= made.limit
    larger = next((size for size in SIZES if size > rows), None)
    assert larger is None or held + made.call_bytes(SMALL, larger) > made.limit


@pytest.mark.parametrize("kind", ["denoise", "decode"])
def test_what_was_never_seen_takes_nothing(kind: str) -> None:
    assert MemoryPlan(None, SIZES).predict(kind, SMALL, 4) == 0  # type: ignore[arg-type]

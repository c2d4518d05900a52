"""Histograms over sliding windows: their accuracy, how they forget, how they add up."""

import math
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.protocol.events import Timings
from deployments.engine.protocol.latencies import SLOTS, WINDOWS, Histogram, PhaseRecorder, Recorder, merge_durations
from deployments.metrics import DURATIONS_S

DURATIONS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=300)


@given(DURATIONS, st.sampled_from([50, 90, 99, 100]))
def test_a_percentile_is_within_three_percent_of_its_sample(seconds: list[float], percent: int) -> None:
    histogram = Histogram()
    for each in seconds:
        histogram.add(each)
    exact = sorted(seconds)[math.ceil(len(seconds) * percent / 100) - 1]
    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.03)
    assert histogram.count == len(seconds)


@given(DURATIONS)
def test_coarser_histograms_count_the_same(seconds: list[float]) -> None:
    histogram = Histogram()
    for each in [*seconds, *DURATIONS_S]:
        histogram.add(each)
    for bound in DURATIONS_S:
        below = sum(count for value, count in histogram.values().items() if value <= bound)
        assert below == sum(each <= bound for each in [*seconds, *DURATIONS_S])


def test_no_time_at_all_is_a_time_too() -> None:
    histogram = Histogram()
    histogram.add(0.0)
    assert histogram.count == 1
    assert 0 < histogram.percentile(50) < 1e-3


def test_nothing_has_no_percentile() -> None:
    assert Histogram().percentile(99) == 0


def test_windows_forget_and_the_total_does_not() -> None:
    now = 5.0
    recorder = Recorder(lambda: now)
    recorder.add(1.0)
    seen = {}
    for now in (5.0, 45.0, 290.0, 3590.0, 4000.0):
        durations = recorder.durations()
        seen[now] = [durations.windows[window].count for window in WINDOWS] + [durations.ever.count]
    assert seen == {
        5.0: [1, 1, 1, 1],
        45.0: [1, 1, 1, 1],
        290.0: [0, 1, 1, 1],
        3590.0: [0, 0, 1, 1],
        4000.0: [0, 0, 0, 1],
    }


def test_an_hour_of_work_takes_bounded_memory() -> None:
    now = 0.0
    recorder = Recorder(lambda: now)
    for step in range(20_000):
        now = step * 5.0
        recorder.add(step % 7 + 0.5)
    assert all(len(window._slots) == SLOTS for window in recorder._windows.values())
    # The last slot has just begun.
    assert recorder.durations().windows["60m"].count == pytest.approx(3600 / 5, rel=1 / SLOTS)


@given(st.lists(DURATIONS, min_size=1, max_size=4))
def test_many_together_are_as_one(parts: list[list[float]]) -> None:
    recorders = [Recorder(lambda: 0.0) for _ in parts]
    one = Recorder(lambda: 0.0)
    for recorder, seconds in zip(recorders, parts, strict=True):
        for each in seconds:
            recorder.add(each)
            one.add(each)
    assert merge_durations(recorder.durations() for recorder in recorders) == one.durations()


def test_a_copy_does_not_change_any_more() -> None:
    recorder = Recorder(lambda: 0.0)
    before = recorder.durations()
    recorder.add(1.0)
    assert before.ever.count == before.windows["1m"].count == 0


def test_inference_is_all_but_the_queue() -> None:
    phases = PhaseRecorder(lambda: 0.0)
    phases.record(Timings(queued_ms=1000, encode_ms=20, denoise_ms=500, decode_ms=80, total_ms=1650))
    middle = {phase: durations.ever.percentile(50) for phase, durations in phases.durations().items()}
    expected = {"queue": 1.0, "encode": 0.02, "denoise": 0.5, "decode": 0.08, "inference": 0.65, "total": 1.65}
    assert middle == pytest.approx(expected, rel=0.03)


def test_the_99th_percentile_is_not_the_largest() -> None:
    histogram = Histogram()
    seconds = [0.01 * (1 + n) for n in range(1000)]
    for each in seconds:
        histogram.add(each)
    assert histogram.percentile(99) == pytest.approx(quantiles(seconds, n=100)[98], rel=0.03)

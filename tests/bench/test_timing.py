"""Medians, ranks and limits."""

import signal
import time

import pytest
import torch

from bench.timing import median_ms, percentile, time_boxed


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(16, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 50, 95, 100)] == [1, 8, 16, 16]


def test_warm_up_calls_are_not_timed() -> None:
    naps = iter([0.05, 0.0, 0.0, 0.0])
    assert median_ms(lambda: time.sleep(next(naps)), torch.device("cpu"), repeats=3, warm_up=1) < 40


def test_a_box_ends_what_takes_too_long() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError), time_boxed(0.05):
        time.sleep(5)
    assert time.monotonic() - started < 2


def test_a_box_leaves_the_clock_as_it_found_it() -> None:
    handler, (before, _) = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    with time_boxed(5):
        pass
    assert signal.getsignal(signal.SIGALRM) is handler
    assert bool(signal.getitimer(signal.ITIMER_REAL)[0]) == bool(before)

"""The growth of a total per second, over the last seconds."""

from deployments.throughput import OVER_S, RateMeter


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_look_says_nothing() -> None:
    assert RateMeter(Time()).update(100.0) == 0.0


def test_it_is_what_was_gained_a_second() -> None:
    time = Time()
    meter = RateMeter(time)
    meter.update(100.0)
    time.now = 4.0
    assert meter.update(102.0) == 0.5


def test_what_was_long_ago_is_forgotten() -> None:
    time = Time()
    meter = RateMeter(time)
    for second in range(100):
        time.now = float(second)
        seen = meter.update(50.0 if second > 20 else 0.0)
    assert seen == 0.0


def test_looks_that_are_far_apart_count_from_the_one_before() -> None:
    time = Time()
    meter = RateMeter(time)
    meter.update(0.0)
    time.now = 10 * OVER_S
    assert meter.update(10 * OVER_S) == 1.0


def test_two_looks_at_one_moment_are_no_rate() -> None:
    meter = RateMeter(Time())
    meter.update(1.0)
    assert meter.update(2.0) == 0.0


def test_few_looks_are_remembered() -> None:
    time = Time()
    meter = RateMeter(time)
    for tick in range(10_000):
        time.now = tick * 0.1
        meter.update(float(tick))
    assert len(meter._readings) <= OVER_S / 0.1 + 2

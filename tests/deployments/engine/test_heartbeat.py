"""An engine's loop counts as hung after the right time."""

from dataclasses import dataclass, field

import pytest

from deployments.engine.heartbeat import FLOOR_SECONDS, RECENT_ITERATIONS, Heartbeat


@dataclass
class Loop:
    """Turns of given lengths, in a time of its own."""

    now: float = 0.0
    heartbeat: Heartbeat = field(init=False)

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat(lambda: self.now)

    def turns(self, *lengths: float) -> None:
        for seconds in lengths:
            self.heartbeat.begin()
            self.now += seconds
            self.heartbeat.end()

    def stalls_after(self, seconds: float) -> bool:
        """Returns True if an iteration that has just begun counts as hung after so many seconds."""
        begun = self.now
        self.heartbeat.begin()
        self.now += seconds
        stalled, self.now = self.heartbeat.is_stalled, begun
        return stalled


def test_a_fast_engine_is_hung_after_half_a_minute() -> None:
    loop = Loop()
    loop.turns(*[0.05] * 500)
    assert not loop.stalls_after(FLOOR_SECONDS)
    assert loop.stalls_after(FLOOR_SECONDS + 1)


@pytest.mark.parametrize("before", [0, 10, 100_000])
def test_an_engine_that_waited_for_work_is_not_hung_for_that(before: float) -> None:
    loop = Loop(now=before)
    loop.turns(0.05)
    assert not loop.stalls_after(1)


def test_a_slow_cpu_with_a_big_model_gets_the_time_that_it_needs() -> None:
    """32 s for 2 rows of 512 x 512 in warm-up; then 16 rows of 768 x 768 at once."""
    loop = Loop()
    loop.turns(32.0, 32.0, 60.0)
    assert not loop.stalls_after(32.0 * 8 * 2.25)


def test_a_kernel_that_was_compiled_once_does_not_hide_a_hang_for_long() -> None:
    """But it may have to be compiled again."""
    loop = Loop()
    loop.turns(90.0, *[0.05] * (RECENT_ITERATIONS - 1))
    assert not loop.stalls_after(900)
    loop.turns(0.05)
    assert not loop.stalls_after(170)
    assert loop.stalls_after(190)

"""What a fault did to the times, read from histories in which it is known."""

from bench.clients.history import Answer, History, Outcome, Sent
from bench.faults.recovery import recovery

FAULT = 10.0


def history(took: dict[float, float], outcome: Outcome = "succeeded") -> History:
    """Requests by when they were due, and how long each took."""
    sent = [Sent(str(at), "cup", at) for at in took]
    return History(sent, [Answer(str(at), outcome, at + seconds, "cup") for at, seconds in took.items()])


def usual(start: int, end: int) -> dict[float, float]:
    """Ten a second, a tenth of a second each."""
    return {tenth / 10 + 0.01: 0.1 for tenth in range(start * 10, end * 10)}


def test_a_fault_that_nobody_feels_takes_no_time() -> None:
    felt = recovery(history(usual(0, 20)), FAULT)
    assert felt.p99_before_ms == felt.p99_during_ms == 100.0
    assert felt.p99_back_s == 0.0
    assert felt.first_success_s is not None
    assert 0.1 <= felt.first_success_s < 0.12


def test_it_lasts_until_the_last_slow_one_has_been_answered() -> None:
    stalled = {at: max(0.1, 13.0 - at) for at in usual(10, 20)}
    felt = recovery(history(usual(0, 10) | stalled), FAULT)
    assert felt.first_success_s is not None
    assert 2.9 <= felt.first_success_s <= 3.1
    assert felt.p99_back_s is not None
    assert 2.9 <= felt.p99_back_s <= 3.1


def test_what_was_on_its_way_has_felt_it_and_is_not_usual() -> None:
    felt = recovery(history(usual(0, 9) | {9.95: 5.0} | usual(10, 11)), FAULT)
    assert felt.p99_before_ms == 100.0
    assert felt.p99_during_ms == 5000.0


def test_a_hiccup_long_after_it_was_back_does_not_count() -> None:
    felt = recovery(history(usual(0, 10) | usual(10, 30) | {25.05: 3.0}), FAULT)
    assert felt.p99_back_s == 0.0


def test_a_lull_between_two_stalls_is_no_recovery() -> None:
    stalls = {11.05: 1.0, 12.05: 1.0}
    felt = recovery(history(usual(0, 10) | usual(10, 20) | stalls), FAULT)
    assert felt.p99_back_s is not None
    assert 3.0 <= felt.p99_back_s <= 3.1


def test_a_server_that_stays_slow_has_not_recovered() -> None:
    slow = dict.fromkeys(usual(10, 20), 1.0)
    assert recovery(history(usual(0, 10) | slow), FAULT).p99_back_s is None


def test_a_few_quick_ones_at_the_end_are_no_recovery() -> None:
    slow = dict.fromkeys(usual(10, 20), 1.0)
    last = dict(list(usual(20, 21).items())[:5])
    assert recovery(history(usual(0, 10) | slow | last), FAULT).p99_back_s is None


def test_refusals_and_failures_are_no_successes() -> None:
    before, after = history(usual(0, 9)), history(usual(10, 12), "refused")
    felt = recovery(History(before.sent + after.sent, before.answers + after.answers), FAULT)
    assert felt.first_success_s is None
    assert felt.p99_during_ms is None

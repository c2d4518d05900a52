"""Tenants take turns, and within a tenant the first to come is the first to be served."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serve_app.jobs.fair_order import QueuedJob, fair_order, next_round


def come(waiting: list[QueuedJob], name: str) -> None:
    """A job whose tenant is the first letter of its name."""
    waiting.append(QueuedJob(name, name[0], next_round(waiting, name[0])))


def served(waiting: list[QueuedJob]) -> str:
    """The next one, by the only hand that there is."""
    name = fair_order(waiting)[0]
    waiting[:] = [turn for turn in waiting if turn.id != name]
    return name


def test_who_sends_many_holds_up_nobody_else() -> None:
    waiting: list[QueuedJob] = []
    for name in ("a1", "a2", "a3", "a4", "b1", "c1", "b2"):
        come(waiting, name)
    assert [served(waiting) for _ in range(7)] == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_who_comes_late_does_not_catch_up_on_what_it_never_asked_for() -> None:
    waiting: list[QueuedJob] = []
    for number in range(6):
        come(waiting, f"a{number}")
    assert [served(waiting) for _ in range(3)] == ["a0", "a1", "a2"]
    for name in ("b0", "b1", "b2"):
        come(waiting, name)
    assert [served(waiting) for _ in range(6)] == ["a3", "b0", "a4", "b1", "a5", "b2"]


@given(st.lists(st.sampled_from(["a", "b", "c", "next"])))
def test_with_all_waiting_nobody_is_served_twice_before_another_is_once(moves: list[str]) -> None:
    waiting: list[QueuedJob] = []
    sent: Counter[str] = Counter()
    order = []
    for move in moves:
        if move != "next":
            sent[move] += 1
            come(waiting, f"{move}{sent[move]}")
        elif waiting:
            # Since then nobody may be passed over twice for the same one.
            others = {turn.tenant for turn in waiting}
            order.append((served(waiting), others))
    for tenant in "abc":
        own = [int(name[1:]) for name, _ in order if name[0] == tenant]
        assert own == sorted(own) == list(range(1, len(own) + 1))
        for other in set("abc") - {tenant}:
            passed = 0
            for name, waited in order:
                if other not in waited or name[0] == other:
                    passed = 0
                elif name[0] == tenant:
                    passed += 1
                assert passed <= 2

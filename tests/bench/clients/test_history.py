"""The history checker, with histories that break each law: a checker that cannot fail proves nothing."""

from dataclasses import fields, replace

import pytest

from bench.clients.history import (
    Answer,
    Counts,
    History,
    Outcome,
    Sent,
    Verdict,
    check,
    counts_of_clients,
    counts_of_server,
    rule_of_three,
)

PATIENCE = 10.0


def good() -> History:
    """Five requests: two pictures, one refusal, one failure that must be, and one client that left."""
    sent = [Sent("a", "cup", 0.0), Sent("b", "star", 1.0), Sent("c", "cup", 2.0)]
    sent += [Sent("d", "poison", 3.0, must_fail=True), Sent("e", "cup", 4.0)]
    answers = [Answer("a", "succeeded", 1.0, "cup"), Answer("b", "succeeded", 2.0, "star")]
    answers += [Answer("c", "refused", 2.01, retry_after=True), Answer("d", "failed", 4.0), Answer("e", "cancelled", 5)]
    return History(sent, answers)


def broken_laws(verdict: Verdict) -> dict[str, tuple[str, ...]]:
    """Which laws were found broken, and by whom."""
    found = {field.name: getattr(verdict, field.name) for field in fields(verdict) if field.name != "counts"}
    return {law: names for law, names in found.items() if names}


def changed(index: int, **fields: object) -> History:
    history = good()
    history.answers[index] = replace(history.answers[index], **fields)  # type: ignore[arg-type]
    return history


def test_a_history_that_keeps_all_laws_has_no_complaints() -> None:
    verdict = check(good(), patience_s=PATIENCE)
    assert broken_laws(verdict) == {}
    assert verdict.complaints() == []
    assert verdict.counts == Counts("the clients", accepted=4, succeeded=2, failed=1, cancelled=1, refused=1)


def test_a_lost_request_is_found() -> None:
    history = good()
    del history.answers[1]
    assert broken_laws(check(history, patience_s=PATIENCE)) == {"lost": ("b",)}


def test_a_request_answered_twice_is_found() -> None:
    history = good()
    history.answers.append(history.answers[0])
    assert broken_laws(check(history, patience_s=PATIENCE)) == {"doubled": ("a",)}


@pytest.mark.parametrize("second", ["refused", "failed", "cancelled"])
def test_a_second_end_of_another_kind_is_found(second: Outcome) -> None:
    history = good()
    history.answers.append(Answer("a", second, 3.0, retry_after=True))
    assert check(history, patience_s=PATIENCE).doubled == ("a",)


def test_swapped_pictures_are_found_both() -> None:
    history = changed(0, shows="star")
    history.answers[1] = replace(history.answers[1], shows="cup")
    assert broken_laws(check(history, patience_s=PATIENCE)) == {"swapped": ("a", "b")}


def test_a_picture_like_none_is_no_picture_of_the_request() -> None:
    assert broken_laws(check(changed(0, shows=None), patience_s=PATIENCE)) == {"swapped": ("a",)}


def test_answers_under_each_others_names_are_found() -> None:
    """Their pictures give them away, though each name was asked for and has one end."""
    history = changed(0, id="b")
    history.answers[1] = replace(history.answers[1], id="a")
    assert broken_laws(check(history, patience_s=PATIENCE)) == {"swapped": ("b", "a")}


def test_an_answer_to_nobody_is_found() -> None:
    history = good()
    history.answers.append(Answer("nobody", "succeeded", 2.0, "cup"))
    assert broken_laws(check(history, patience_s=PATIENCE)) == {"strangers": ("nobody",)}


def test_an_answer_after_its_callers_patience_is_late() -> None:
    assert broken_laws(check(changed(1, at=1.0 + PATIENCE), patience_s=PATIENCE)) == {}
    assert broken_laws(check(changed(1, at=1.1 + PATIENCE), patience_s=PATIENCE)) == {"late": ("b",)}


def test_a_failure_that_need_not_be_is_found() -> None:
    assert broken_laws(check(changed(0, outcome="failed"), patience_s=PATIENCE)) == {"failed": ("a",)}


def test_what_must_fail_is_not_to_be_asked_again() -> None:
    """A refusal would invite its caller to try once more, and kill once more."""
    history = changed(3, outcome="refused", retry_after=True)
    assert broken_laws(check(history, patience_s=PATIENCE)) == {"spared": ("d",)}


def test_a_refusal_must_say_when_to_come_back() -> None:
    assert broken_laws(check(changed(2, retry_after=False), patience_s=PATIENCE)) == {"unexplained": ("c",)}


def plain() -> History:
    """No client left and no connection broke: both sides must have counted exactly the same."""
    history = good()
    return History(history.sent[:3], history.answers[:3])


def test_a_server_that_counted_the_same_is_believed() -> None:
    theirs = replace(counts_of_clients(plain()), source="the server's statistics")
    assert check(plain(), [theirs], patience_s=PATIENCE).miscounted == ()


@pytest.mark.parametrize("what", ["accepted", "succeeded", "failed", "cancelled", "refused"])
@pytest.mark.parametrize("by", [-1, 1])
def test_a_miscount_of_one_is_found_in_every_figure(what: str, by: int) -> None:
    ours = counts_of_clients(plain())
    theirs = replace(ours, source="the server's statistics", **{what: getattr(ours, what) + by})
    found = check(plain(), [theirs], patience_s=PATIENCE).miscounted
    assert any(line.startswith(f"{what}: ") for line in found)


def test_every_source_is_checked_not_only_the_first() -> None:
    right = replace(counts_of_clients(plain()), source="the statistics")
    wrong = replace(right, source="the metrics", succeeded=right.succeeded - 1, failed=right.failed + 1)
    found = check(plain(), [right, wrong], patience_s=PATIENCE).miscounted
    assert len(found) == 2
    assert all("the metrics" in line for line in found)


def test_accepted_must_be_succeeded_failed_and_cancelled() -> None:
    """Also where the difference to the clients' count could be explained."""
    theirs = replace(counts_of_clients(good()), source="the server's statistics", succeeded=1)
    assert check(good(), [theirs], patience_s=PATIENCE).miscounted != ()


def test_who_left_may_have_been_served_as_the_server_sees_it() -> None:
    theirs = replace(counts_of_clients(good()), source="the server's statistics", cancelled=0, succeeded=3)
    assert check(good(), [theirs], patience_s=PATIENCE).miscounted == ()


def test_statistics_become_the_difference_of_two_looks() -> None:
    before = {"requests": 10, "refused": 1, "cancelled": 2, "finished": 6, "failures": 1, "broken": 1}
    after = {"requests": 20, "refused": 3, "cancelled": 3, "finished": 12, "failures": 3, "broken": 2}
    expected = Counts("the server's statistics", accepted=8, succeeded=4, failed=3, cancelled=1, refused=2)
    assert counts_of_server(before, after) == expected


def test_a_request_that_never_ended_makes_the_servers_count_uneven() -> None:
    zero = dict.fromkeys(("requests", "refused", "cancelled", "finished", "failures", "broken"), 0)
    counts = counts_of_server(zero, zero | {"requests": 3, "finished": 1, "refused": 1})
    found = check(plain(), [counts], patience_s=PATIENCE).miscounted
    assert found[0] == "the server's statistics: of 2 accepted not every one has ended once"


def test_the_rule_of_three() -> None:
    """0.95 = 1 - (1 - p)^n is solved by about 3/n."""
    for trials in (30, 300, 3000):
        assert 1 - (1 - rule_of_three(trials)) ** trials == pytest.approx(0.95, abs=0.01)
    assert rule_of_three(2) == 1.0

"""What the fault bench demands, and what it writes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench.clients.history import Answer, History, Sent
from bench.faults import report
from bench.faults.__main__ import PAGE, main
from bench.faults.cases import NAMES_OF_ROWS, ROWS, load_of
from bench.faults.recovery import recovery
from bench.faults.runs import figures, overload_calls, overload_felt
from bench.faults.targets import misses


def row(**changes: Any) -> dict[str, Any]:
    """A row of eighty good requests, by way of the bench's own figures."""
    sent = [Sent(f"r{i}", "cup", i / 10) for i in range(80)]
    history = History(sent, [Answer(one.id, "succeeded", one.at + 0.1, "cup") for one in sent])
    facts = {
        "row": "a-fault",
        "fault": "a fault",
        "expected": asdict(ROWS[0].expected),
        "card": CARD,
        "client_lag_p99_ms": 1.0,
    }
    return facts | figures(history, recovery(history, 2.0), []) | changes


CARD = {"hardware": {"cpu": "a CPU"}, "versions": {"ray": "2"}, "commit": "0123"}


def test_a_good_row_misses_nothing() -> None:
    assert misses(row()) == []


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"complaints": ["1 without an end: r1"]}, "1 without an end: r1"),
        ({"refused": 10, "refused_in_time": 8}, "2 of 10 refusals took more than 50 ms"),
        ({"goodput_share": 0.94}, "goodput 94% of the peak, target 95%"),
    ],
)
def test_each_target_can_be_missed(changes: dict[str, Any], missed: str) -> None:
    assert misses(row(**changes)) == [missed]


def test_the_table_goes_between_the_markers_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write(page, [row()])
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert text.count("| a fault | 80 | 80 | 0 | 0 | 0 | 0 | 100 | 100 | 0.2 | 0.0 | met |") == 1
        assert "none of 80 bounds a rate at 3.75%" in text


def test_the_docs_have_the_markers() -> None:
    assert PAGE.read_text().count(report.BEGIN) == PAGE.read_text().count(report.END) == 1


@pytest.mark.parametrize("one", ROWS, ids=lambda one: one.name)
def test_every_load_goes_on_before_and_after_its_fault(one: Any) -> None:
    calls, fault_at = load_of(one, 120)
    assert sum(call.at < fault_at for call in calls) > 10
    assert sum(call.at > fault_at for call in calls) > 50
    assert len({call.id for call in calls}) == len(calls)


def test_an_overload_is_over_when_what_comes_after_it_is_quick() -> None:
    """The flood lasts 35 seconds, and what it left in the queue 20 more."""
    at_peak = [(second / 10, 2.0) for second in range(100)]
    flood = [(20 + second, 30.0) for second in range(35)]
    trickle = [(56 + second, max(1.0, 75.0 - (56 + second))) for second in range(60)]
    sent = [Sent(str(at), "cup", at) for at, _ in at_peak + flood + trickle]
    answers = [Answer(str(at), "succeeded", at + seconds, "cup") for at, seconds in at_peak + flood + trickle]
    felt = overload_felt(History(sent, answers), 20.0)
    assert felt.p99_during_ms == 30_000.0
    assert felt.p99_back_s is not None
    assert 19.0 <= felt.p99_back_s <= 21.0


def test_the_flood_is_five_times_the_peak_and_the_trickle_a_fifth() -> None:
    calls = overload_calls(10.0, begun=20.0)
    flood = [call for call in calls if call.at < 55.0]
    assert len(flood) / 35.0 == pytest.approx(50.0, rel=0.1)
    assert len(calls) - len(flood) == 180
    assert min(call.at for call in calls) > 20.0


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "sigkill-idle,nobody"])
    assert "there is no nobody" in capsys.readouterr().err


def test_every_row_has_a_name_of_its_own() -> None:
    assert len(set(NAMES_OF_ROWS)) == len(NAMES_OF_ROWS) == 12

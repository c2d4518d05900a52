"""The verdict, and that an interrupted run goes on where it was."""

from pathlib import Path
from typing import Any

import pytest

from bench.online.plots import FILE, plot
from bench.online.report import best_capacity, carried_by_peers, table, verdict
from bench.online.results import Results, open_results


def run(
    contender: str, rate: float, in_time: float, throughput: float = 1.0, p95: float | None = 1.0
) -> dict[str, Any]:
    counts = dict.fromkeys(("refused", "failed", "left"), 0)
    times = {"p50_s": p95, "p95_s": p95, "p99_s": p95}
    goodput = {"in_time": in_time, "goodput_per_s": rate * in_time, "throughput_per_s": throughput}
    return {"contender": contender, "rate": rate, **goodput, **times, **counts}


RUNS = [
    run("darkroom", 1.0, 1.0),
    run("darkroom", 2.0, 0.9),
    run("darkroom", 4.0, 0.5),
    run("genai", 1.0, 1.0),
    run("genai", 2.0, 0.6, throughput=1.5),
    run("genai", 4.0, 0.1, throughput=1.4),
    run("ray_sample", 1.0, 0.9),
    run("ray_sample", 2.0, 0.2),
]


def test_goodput_is_compared_at_the_highest_rate_that_a_peer_still_carries_half_of() -> None:
    found = verdict(RUNS, {})
    assert (found["at_rate"], found["best_peer"], found["goodput_ratio"]) == (2.0, "genai", 1.5)


def test_the_rate_that_is_carried_by_half_lies_between_two_of_one_peer() -> None:
    assert carried_by_peers(RUNS) == ("genai", 2.0, 4.0)
    assert carried_by_peers(RUNS[:4]) == ("genai", 1.0, None)
    assert carried_by_peers(RUNS[:3]) is None


def test_a_peers_capacity_is_its_highest_throughput_at_any_rate() -> None:
    assert best_capacity(RUNS) == ("genai", 1.5)
    assert best_capacity(run for run in RUNS if run["contender"] == "darkroom") is None


@pytest.mark.parametrize(("ours", "theirs", "ratio"), [(1.0, 4.0, 0.25), (1.0, None, None), (None, 4.0, None)])
def test_a_p95_that_never_came_gives_no_ratio(ours: float | None, theirs: float | None, ratio: float | None) -> None:
    at_load = {"darkroom": run("darkroom", 1.05, 1.0, p95=ours), "genai": run("genai", 1.05, 1.0, p95=theirs)}
    assert verdict(RUNS, at_load)["p95_ratio"] == ratio


def test_the_table_goes_by_rate_and_has_darkroom_first() -> None:
    rows = [row.split(" | ")[:2] for row in table(reversed(RUNS)).splitlines()[2:]]
    assert rows[:3] == [["| 1", "Darkroom"], ["| 1", "openvino-genai"], ["| 1", "Ray's sample"]]
    assert len(rows) == len(RUNS)


def test_the_picture_is_drawn_from_saved_runs(tmp_path: Path) -> None:
    plot(RUNS, tmp_path)
    assert (tmp_path / FILE).read_bytes().startswith(b"\x89PNG")


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    Results(file, {"seed": 1}).keep("part", lambda: 5)
    assert Results(file, {"seed": 1}).keep("part", lambda: 6) == 5


@pytest.mark.parametrize(
    "other", [{"commit": "b"}, {"versions": {"torch": "3"}}, {"hardware": {"cpu": "another", "load_before": 0.1}}]
)
def test_another_commit_is_measured_anew_and_other_versions_are_not_mixed_in(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    facts = {"commit": "a", "versions": {"torch": "2"}, "hardware": {"cpu": "one", "load_before": 0.1}}
    settings = {"seed": 1, "quick": False}
    open_results(tmp_path, None, facts, settings).keep("part", lambda: 5)
    busier = facts | {"hardware": {"cpu": "one", "load_before": 1.5}}
    assert open_results(tmp_path, None, busier, settings).keep("part", lambda: 6) == 5
    if "commit" in other:
        assert open_results(tmp_path, None, facts | other, settings).keep("part", lambda: 7) == 7
    else:
        with pytest.raises(ValueError, match="other settings"):
            open_results(tmp_path, None, facts | other, settings)


def test_results_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    Results(file, {"seed": 1}).keep("part", lambda: 5)
    with pytest.raises(ValueError, match="other settings"):
        Results(file, {"seed": 2})

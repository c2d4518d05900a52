"""The bench prints a card, a table and one JSON document, and does not call other pictures a speed-up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench.engine.__main__
from bench.engine.__main__ import RANDOM, compare, main
from bench.engine.contenders import Outcome
from bench.engine.report import ENGINE, LIKE_BATCHES, ONE_BY_ONE, summary
from bench.engine.workload import WORKLOADS, text
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec

SPEC = ModelSpec("any", "nowhere", native_size=64)


def outcome(seconds: float, grey: int = 0) -> Outcome:
    return Outcome(seconds, (seconds / 2, seconds), (np.full((2, 2, 3), grey, np.int16),) * 2, 10, 40, 50)


def last_json(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return document


@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_the_last_line_is_one_json_document_with_everything(
    workload: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--requests", "4", "--steps", "2,3", "--repeats", "1", "--threads", "1"]
    assert main(["--model", str(folder), "--workload", workload, *quick]) == 0
    printed = capsys.readouterr().out
    document = last_json(printed)
    assert {"hardware", "versions", "commit", "workload", "forecast", "ratio", "target"} <= document.keys()
    assert set(document["contenders"]) == {ENGINE, ONE_BY_ONE, LIKE_BATCHES}
    assert document["same_pictures"]
    assert document["ratio"] > 0
    assert document["contenders"][ENGINE]["unet_calls"] == document["forecast"]["unet_calls"]
    assert document["workload"]["name"] == workload
    assert document["controlnet"] == (RANDOM if workload == "mixed" else None)
    assert str(folder) not in printed


def test_other_pictures_end_the_bench_with_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.engine.__main__, "measure", lambda _options: {"same_pictures": False})
    assert main(["--model", str(folder), "--threads", "1"]) == 1
    assert last_json(capsys.readouterr().out) == {"same_pictures": False}


def test_a_missing_checkpoint_is_said_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path / "none"), "--threads", "1"]) == 2
    assert "no checkpoint in none/" in capsys.readouterr().out


def test_the_warm_up_is_not_counted_and_contenders_take_turns() -> None:
    order: list[tuple[str, int]] = []

    def contender(name: str) -> Any:
        def serve(requests: list[Request]) -> Outcome:
            order.append((name, len(requests)))
            return outcome(float(len(requests)))

        return serve

    runs = compare({"a": contender("a"), "b": contender("b")}, [text(SPEC, count) for count in (1, 2, 3)])
    assert [run.seconds for run in runs["a"]] == [2.0, 3.0]
    assert order == [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]


def test_ratios_are_medians_of_ratios_within_a_repeat() -> None:
    runs = {
        ENGINE: [outcome(1), outcome(10), outcome(2)],
        ONE_BY_ONE: [outcome(2), outcome(20), outcome(5)],
        LIKE_BATCHES: [outcome(1), outcome(10), outcome(2)],
    }
    report = summary(runs, [text(SPEC, 2)] * 3, 16, "text")
    assert (report["ratio"], report["ratio_like_batches"]) == (2.0, 1.0)
    assert report["contenders"][ENGINE]["images_per_second"] == 1.0
    assert report["contenders"][ENGINE]["padded_share"] == 0.2


def test_a_visible_difference_in_any_repeat_is_found() -> None:
    runs = {
        ENGINE: [outcome(1), outcome(1)],
        ONE_BY_ONE: [outcome(2), outcome(2, grey=2)],
        LIKE_BATCHES: [outcome(1), outcome(1)],
    }
    report = summary(runs, [text(SPEC, 2)] * 2, 16, "text")
    assert (report["largest_difference"], report["same_pictures"]) == (2, False)

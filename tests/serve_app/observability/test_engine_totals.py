"""No counter falls because an engine is late or gone, and nothing is counted twice when it is there again."""

from collections import Counter
from dataclasses import replace

import pytest

from deployments.engine.protocol.counters import Counters
from deployments.engine.protocol.report import EngineReport, Load, ModelReport
from deployments.metrics import BATCH_SIZE, IMAGES, READY
from serve_app.observability import engine_totals
from serve_app.observability.engine_totals import EngineTotals
from serve_app.observability.prometheus import add_up


def engine(name: str, images: int) -> EngineReport:
    counters = Counters(images=images, batch_sizes=Counter({2: images}))
    return EngineReport(True, "cpu", ("tiny",), {"tiny": ModelReport(counters)}, Load(), id=name)


def images_told(totals: EngineTotals, *engines: EngineReport) -> float:
    told = add_up(totals.samples(engines))
    done = told[IMAGES, ("tiny", "done")]
    assert told[BATCH_SIZE, ("tiny",)] == {2.0: done}
    assert told[READY, ()] == len(engines)
    assert isinstance(done, int)
    return done


def test_no_counter_falls_when_an_engine_is_late_or_gone_and_none_counts_twice() -> None:
    totals = EngineTotals()
    assert images_told(totals, engine("a", 100), engine("b", 10)) == 110
    assert images_told(totals, engine("a", 101)) == 111
    assert images_told(totals, engine("a", 101), engine("b", 14)) == 115
    assert images_told(totals, engine("b", 14), engine("c", 1)) == 116


def test_what_engines_have_counted_outlives_the_memory_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_totals, "REMEMBERED", 3)
    totals = EngineTotals()
    told = [images_told(totals, engine("a", 5), engine(str(i), 1)) for i in range(20)]
    assert told == [6 + i for i in range(20)]
    assert len(totals._counted) == 5


def test_engines_that_have_counted_nothing_yet_are_told_apart_from_none() -> None:
    totals = EngineTotals()
    new = replace(engine("", 0), models={})
    assert add_up(totals.samples([new, new]))[READY, ()] == 2

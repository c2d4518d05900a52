"""The figures of many engines, added up in one document."""

import json
from collections import Counter

from deployments.engine.protocol.counters import Counters
from deployments.engine.protocol.events import Timings
from deployments.engine.protocol.latencies import PhaseRecorder
from deployments.engine.protocol.report import (
    AdapterReport,
    CallReport,
    EngineReport,
    Load,
    MemoryReport,
    ModelReport,
    SharingReport,
)
from serve_app.observability.engine_stats import engine_figures


def model(calls: int, queued_ms: float) -> ModelReport:
    phases = PhaseRecorder(lambda: 0.0)
    phases.record(Timings(queued_ms=queued_ms, total_ms=queued_ms + 100))
    counters = Counters(unet_calls=calls, unet_rows=3 * calls, images=1, batch_sizes=Counter({3: calls}))
    return ModelReport(counters, phases.durations())


def engine(models: dict[str, ModelReport], low: int = 0) -> EngineReport:
    call = CallReport("denoise", "sd", 64, 64, 2, 0.1, 10, 11)
    memory = MemoryReport(100, 40, 60)
    return EngineReport(True, "cpu", tuple(models), models, Load({"low": low}), memory, {"sd": 8}, (call,))


TWO = [engine({"sd": model(2, 10), "other": model(1, 10)}, low=2), engine({"sd": model(5, 1000)}, low=1)]


def test_each_engine_says_what_the_autoscaler_adds_up() -> None:
    (told,) = engine_figures([EngineReport(True, load=Load(worked=1234.56789, backlog=7.25))])["engines"]
    assert (told["work_seconds"], told["backlog_seconds"]) == (1234.568, 7.25)


def test_each_engine_says_what_its_loras_take() -> None:
    (told,) = engine_figures([EngineReport(True, adapters=AdapterReport(2, 80, 100, hits=5, reads=3))])["engines"]
    assert told["loras"] | {"loaded": 2, "held_bytes": 80, "budget_bytes": 100, "hits": 5, "reads": 3} == told["loras"]


def test_each_engine_says_what_it_shares_of_states_and_nothing_where_it_shares_none() -> None:
    sharing = SharingReport(1, 2, 3, 4, 5, is_well=False)
    sharer, other = engine_figures([EngineReport(True, sharing=sharing), EngineReport(True)])["engines"]
    told = {"sent": 1, "received": 2, "dropped": 3, "damaged": 4, "failures": 5, "is_well": False}
    assert (sharer["sharing"], other["sharing"]) == (told, None)


def test_each_engine_names_the_attention_that_it_computes_with_and_what_is_compiled() -> None:
    chosen = {"sd": {"4096x4096x8x40": "flash"}}
    (told,) = engine_figures([EngineReport(True, attention=chosen, compiled={"sd": ("unet", "vae")})])["engines"]
    assert told["attention"] == chosen
    assert told["compiled"] == {"sd": ["unet", "vae"]}


def test_models_are_added_up_over_engines() -> None:
    figures = engine_figures(TWO)
    assert {name: each["unet_calls"] for name, each in figures["models"].items()} == {"other": 1, "sd": 7}
    assert figures["models"]["sd"]["batch_sizes"] == {"3": 7}
    assert (figures["total"]["unet_calls"], figures["total"]["unet_rows"]) == (8, 24)
    assert (figures["unet_calls"], figures["unet_rows"], figures["mean_rows_per_call"]) == (8, 24, 3.0)
    assert figures["waiting_by_priority"] == {"low": 3}
    assert figures["images_waiting"] == 3


def test_percentiles_are_those_of_all_requests_and_no_mean_of_percentiles() -> None:
    queue = engine_figures(TWO)["models"]["sd"]["durations_ms"]["queue"]["1m"]
    assert queue["count"] == 2
    assert 9.7 < queue["p50"] < 10.3
    assert 970 < queue["p99"] < 1030


def test_each_engine_shows_plan_and_reality() -> None:
    one = engine_figures(TWO)["engines"][0]
    assert one["memory"] == {"budget_bytes": 100, "held_bytes": 40, "planned_bytes": 60}
    assert (one["calls"][0]["measured_bytes"], one["calls"][0]["planned_bytes"]) == (10, 11)
    assert one["knees"] == {"sd": 8}


def test_the_document_is_json_also_without_engines() -> None:
    assert json.loads(json.dumps(engine_figures(TWO))) == engine_figures(TWO)
    empty = engine_figures([])
    assert (empty["unet_calls"], empty["mean_rows_per_call"], empty["models"], empty["engines"]) == (0, 0.0, {}, [])


def test_what_named_no_model_of_ours_is_in_the_total_only() -> None:
    figures = engine_figures([engine({"": ModelReport(Counters(refused=2))})])
    assert figures["models"] == {}
    assert figures["total"]["refused"] == 2

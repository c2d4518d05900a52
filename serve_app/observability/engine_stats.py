"""The engines' part of the statistics document: each engine's own figures, and totals by model.

An engine's counters live and die with it: a replica that is gone takes its figures along. The service's own counters
(`request_stats.py`) are complete for as long as its process lives.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from deployments.engine.protocol.counters import Counters, sum_counters
from deployments.engine.protocol.latencies import PHASES, Durations, Histogram, Phase, merge_durations
from deployments.engine.protocol.report import EngineReport, ModelReport

_PERCENTS = (50, 90, 99)


def engine_figures(engines: Iterable[EngineReport]) -> dict[str, Any]:
    """Summarises all engines: `unet_calls` and more; `waiting_by_priority`; `models` by name; `engines` one by one."""
    every = list(engines)
    models = _by_model(every)
    together_all = _merge([part for parts in models.values() for part in parts])
    counted = together_all.counters
    waiting: dict[str, int] = {}
    for engine in every:
        for priority, images in engine.load.waiting.items():
            waiting[priority] = waiting.get(priority, 0) + images
    return {
        "unet_calls": counted.unet_calls,
        "unet_rows": counted.unet_rows,
        "mean_rows_per_call": round(counted.unet_rows / counted.unet_calls, 3) if counted.unet_calls else 0.0,
        "images_waiting": sum(waiting.values()),
        "images_running": sum(engine.load.running for engine in every),
        "waiting_by_priority": waiting,
        "total": _figures_of(together_all),
        "models": {name: _figures_of(_merge(parts)) for name, parts in sorted(models.items()) if name},
        "engines": [_engine_report(engine) for engine in every],
    }


def windows_ms(durations: Durations) -> dict[str, dict[str, float]]:
    """Count and percentiles in milliseconds, by window; percentiles of an empty window are 0."""
    return {window: _percentiles(histogram) for window, histogram in durations.windows.items()}


def _by_model(engines: list[EngineReport]) -> dict[str, list[ModelReport]]:
    models: dict[str, list[ModelReport]] = {}
    for engine in engines:
        for name, report in engine.models.items():
            models.setdefault(name, []).append(report)
    return models


def _merge(parts: list[ModelReport]) -> ModelReport:
    durations: dict[Phase, Durations] = {
        phase: merge_durations(part.durations[phase] for part in parts if phase in part.durations) for phase in PHASES
    }
    return ModelReport(sum_counters(part.counters for part in parts), durations)


def _figures_of(model: ModelReport) -> dict[str, Any]:
    durations = {phase: windows_ms(each) for phase, each in model.durations.items()}
    return {**_counters(model.counters), "durations_ms": durations}


def _counters(counters: Counters) -> dict[str, Any]:
    sizes = {str(rows): calls for rows, calls in sorted(counters.batch_sizes.items())}
    return {**counters.as_dict(), "denoise_seconds": round(counters.denoise_seconds, 3), "batch_sizes": sizes}


def _engine_report(engine: EngineReport) -> dict[str, Any]:
    return {
        "ready": engine.ready,
        "device": engine.device,
        "backends": dict(engine.backends),
        "attention": {name: dict(kernels) for name, kernels in engine.attention.items()},
        "compiled": {name: list(networks) for name, networks in engine.compiled.items()},
        "loaded_models": list(engine.loaded_models),
        "waiting": dict(engine.load.waiting),
        "running": engine.load.running,
        "capacity": engine.load.capacity,
        "work_seconds": round(engine.load.worked, 3),
        "backlog_seconds": round(engine.load.backlog, 3),
        "knees": dict(engine.knees),
        "memory": asdict(engine.memory),
        "loras": {**asdict(engine.adapters), "read_seconds": round(engine.adapters.read_seconds, 3)},
        "sharing": None if engine.sharing is None else asdict(engine.sharing),
        "calls": [asdict(call) for call in engine.calls],
    }


def _percentiles(histogram: Histogram) -> dict[str, float]:
    of: Mapping[str, float] = {f"p{p}": round(histogram.percentile(p) * 1000, 1) for p in _PERCENTS}
    return {"count": histogram.count, **of}

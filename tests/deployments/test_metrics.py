"""Prometheus metrics: named as Prometheus wants them, and published without loss."""

import re
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import pytest

from deployments import metrics
from deployments.engine.protocol.counters import Counters
from deployments.engine.protocol.latencies import PhaseRecorder
from deployments.engine.protocol.report import EngineReport, Load, MemoryReport, ModelReport, SharingReport
from deployments.metrics import (
    BATCH_SIZE,
    IMAGES,
    MEMORY,
    QUEUE_DEPTH,
    SHARED_STATES,
    SHARING_FAILURES,
    Metric,
    Sample,
    engine_samples,
)
from deployments.ray_metrics import RayMetrics

CATALOGUE = [value for value in vars(metrics).values() if isinstance(value, Metric)]


class FakeMetrics:
    """Ray's module, as far as it is used: it remembers what it is told."""

    def __init__(self) -> None:
        self.totals: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self.observed: defaultdict[str, Counter[float]] = defaultdict(Counter)

    def _made(self, name: str, **_asked: Any) -> Any:
        told = self

        class Made:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert value > 0
                told.totals[(name, *tags.values())] += value

            def set(self, value: float, tags: dict[str, str]) -> None:
                told.totals[(name, *tags.values())] = value

            def observe(self, value: float, tags: dict[str, str]) -> None:
                told.observed[name][value] += 1

        return Made()

    Counter = Gauge = Histogram = _made


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeMetrics:
    fake = FakeMetrics()
    monkeypatch.setattr("ray.serve.metrics", fake)
    return fake


def test_names_are_as_prometheus_wants_them() -> None:
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)
    for metric in CATALOGUE:
        assert re.fullmatch(r"diffusion_[a-z_]+[a-z]", metric.name)
        assert not metric.name.endswith("_total"), "exporters add it"
        assert (metric.kind == "histogram") == bool(metric.bounds)
        # Serve adds these itself.
        assert not {"deployment", "replica", "application"} & set(metric.labels)


def report(images: int, waiting: int) -> EngineReport:
    counters = Counters(images=images, unet_calls=3, batch_sizes=Counter({2: images, 16: 1}))
    memory = MemoryReport(budget_bytes=100, held_bytes=40, planned_bytes=60)
    phases = PhaseRecorder().durations()
    return EngineReport(True, "cpu", ("tiny",), {"tiny": ModelReport(counters, phases)}, Load({"low": waiting}), memory)


def test_an_engines_report_becomes_samples() -> None:
    samples = list(engine_samples(report(2, 1)))
    assert Sample(IMAGES, ("tiny", "done"), 2) in samples
    assert Sample(QUEUE_DEPTH, ("low",), 1) in samples
    assert Sample(BATCH_SIZE, ("tiny",), {2.0: 2, 16.0: 1}) in samples
    assert [sample.now for sample in samples if sample.metric is MEMORY] == [100, 40, 60]
    keys = [(sample.metric.name, sample.values) for sample in samples]
    assert len(set(keys)) == len(keys)


def test_what_replicas_share_becomes_samples_where_they_share() -> None:
    samples = list(engine_samples(replace(report(2, 1), sharing=SharingReport(1, 2, 3, 4, 5))))
    shared = {sample.values: sample.now for sample in samples if sample.metric is SHARED_STATES}
    assert shared == {("sent",): 1, ("received",): 2, ("dropped",): 3, ("damaged",): 4}
    assert Sample(SHARING_FAILURES, (), 5) in samples
    assert not [sample for sample in engine_samples(report(2, 1)) if sample.metric in (SHARED_STATES, SHARING_FAILURES)]


def test_counters_are_told_by_their_growth_and_gauges_as_they_are(ray: FakeMetrics) -> None:
    to = RayMetrics()
    for images, waiting in ((2, 1), (2, 5), (7, 0)):
        to.publish(engine_samples(report(images, waiting)))
    assert ray.totals["diffusion_images", "tiny", "done"] == 7
    assert ray.totals["diffusion_unet_calls", "tiny"] == 3
    assert ray.totals["diffusion_queue_depth", "low"] == 0
    assert ray.observed["diffusion_batch_size"] == {2.0: 7, 16.0: 1}

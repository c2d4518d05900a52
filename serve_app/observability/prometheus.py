"""Encodes samples for Prometheus, in its text format or OpenMetrics. Independent of HTTP."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.utils import floatToGoString

from deployments.metrics import Metric, Sample

TEXT: Final = "text/plain"
OPENMETRICS: Final = "application/openmetrics-text"

Value = float | Mapping[float, int]


def exposition(samples: Iterable[Sample], media_type: str = TEXT) -> tuple[bytes, str]:
    """Returns the document as `TEXT` or `OPENMETRICS`, and its complete content type."""
    collected = _Registry(build_families(samples))
    if media_type == OPENMETRICS:
        return generate_openmetrics(collected), CONTENT_TYPE_LATEST
    return generate_latest(collected), CONTENT_TYPE_PLAIN_0_0_4


def build_families(samples: Iterable[Sample]) -> list[Family]:
    """Builds one family for each metric, in the order of their first samples.

    Samples with the same metric and labels are added up: several engines report the same model.
    """
    found: dict[str, Family] = {}
    for (metric, values), now in add_up(samples).items():
        _add_sample(found.setdefault(metric.name, _create_family(metric)), metric, values, now)
    return list(found.values())


def add_up(samples: Iterable[Sample]) -> dict[tuple[Metric, tuple[str, ...]], Value]:
    """Returns the sum of all samples with the same metric and labels."""
    added: dict[tuple[Metric, tuple[str, ...]], Value] = {}
    for sample in samples:
        key = (sample.metric, sample.values)
        added[key] = _sum(added[key], sample.now) if key in added else sample.now
    return added


class _Registry:
    """Looks like a prometheus_client registry, with families that are already built."""

    def __init__(self, of: list[Family]) -> None:
        self._of = of

    def collect(self) -> list[Family]:
        return self._of


def _sum(one: Value, other: Value) -> Value:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return Counter(dict(one)) + Counter(dict(other))
    assert not isinstance(one, Mapping)
    assert not isinstance(other, Mapping)
    return one + other


def _create_family(metric: Metric) -> Family:
    match metric.kind:
        case "counter":
            return CounterMetricFamily(metric.name, metric.description, labels=metric.labels)
        case "gauge":
            return GaugeMetricFamily(metric.name, metric.description, labels=metric.labels)
        case "histogram":
            return HistogramMetricFamily(metric.name, metric.description, labels=metric.labels)


def _add_sample(family: Family, metric: Metric, values: tuple[str, ...], now: Value) -> None:
    if isinstance(now, Mapping):
        assert isinstance(family, HistogramMetricFamily)
        family.add_metric(values, _buckets(metric.bounds, now), sum(value * times for value, times in now.items()))
    else:
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(values, float(now))


def _buckets(bounds: tuple[float, ...], observed: Mapping[float, int]) -> list[tuple[str, float]]:
    """Counts the values up to each bound. Exact: no bound lies inside a bucket that `observed` was read from."""
    edges = (*bounds, float("inf"))
    own: Counter[float] = Counter()
    for value, times in observed.items():
        own[next(edge for edge in edges if value <= edge)] += times
    return [
        (floatToGoString(edge), float(count))
        for edge, count in zip(edges, accumulate(own[edge] for edge in edges), strict=True)
    ]

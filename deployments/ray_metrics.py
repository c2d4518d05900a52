"""Publishes samples through Ray, whose agents export them on each node's metrics port with the replica's name.

Counters and histograms are published as their growth since the last time, so nothing is counted in two places.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from deployments.metrics import Metric, Sample

log = logging.getLogger(__name__)

PERIOD_S: Final = 1.0

Samples = Callable[[], Iterable[Sample]]


class RayMetrics:
    """Ray's metrics. Make it in a replica's process, once Serve has set the replica's context."""

    def __init__(self) -> None:
        # Imported here: Ray reads its settings on import, and whoever starts a cluster makes them later.
        from ray.serve import metrics

        self._ray = metrics
        self._metrics: dict[str, Any] = {}
        self._published: dict[tuple[str, tuple[str, ...]], Any] = {}

    def publish(self, samples: Iterable[Sample]) -> None:
        """Publishes what has changed."""
        for sample in samples:
            key = (sample.metric.name, sample.values)
            before = self._published.get(key)
            if sample.now != before or sample.metric.kind == "gauge":
                self._publish_one(sample, before)
                self._published[key] = sample.now

    def _publish_one(self, sample: Sample, before: Any) -> None:
        metric = self._metrics.get(sample.metric.name) or self._create(sample.metric)
        if isinstance(sample.now, Mapping):
            for value, times in sample.now.items():
                for _ in range(times - (before or {}).get(value, 0)):
                    metric.observe(value, tags=sample.labels)
        elif sample.metric.kind == "gauge":
            metric.set(float(sample.now), tags=sample.labels)
        elif sample.now > (before or 0):
            metric.inc(float(sample.now - (before or 0)), tags=sample.labels)

    def _create(self, metric: Metric) -> Any:
        options: dict[str, Any] = {"description": metric.description, "tag_keys": metric.labels}
        match metric.kind:
            case "counter":
                created = self._ray.Counter(metric.name, **options)
            case "gauge":
                created = self._ray.Gauge(metric.name, **options)
            case "histogram":
                created = self._ray.Histogram(metric.name, boundaries=list(metric.bounds), **options)
        self._metrics[metric.name] = created
        return created


class Publisher:
    """Publishes `samples` every `PERIOD_S` seconds, on a thread of its own, until it is stopped."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. Samples since its last round are not exported."""
        self._stopped.set()

    def _run(self) -> None:
        to = RayMetrics()
        while not self._stopped.wait(PERIOD_S):
            try:
                to.publish(self._samples())
            except Exception:
                # Statistics must never crash a replica, nor fail silently.
                log.exception("metrics could not be published")

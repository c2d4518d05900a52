"""What a service and what is behind it have counted: as one document, and as samples for Prometheus."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deployments.metrics import BLOCKED, COUNTS, GATEWAY_COUNTS, REDIS_DAMAGED, Sample
from serve_app.backends.protocol import Backend, BackendReport
from serve_app.cache.result_cache import ResultCache
from serve_app.observability.callback_stats import CallbackCounts
from serve_app.observability.engine_stats import engine_figures
from serve_app.observability.engine_totals import EngineTotals
from serve_app.observability.request_stats import Statistics
from serve_app.observability.versions import build_sample
from serve_app.store.redis import RedisTier


@dataclass(frozen=True, slots=True)
class ServiceCounts:
    """The counters of one service: `blocked` are its blocklist's by rule, `gateway` those of what stands in front."""

    backend: Backend
    cache: ResultCache
    redis: RedisTier | None
    statistics: Statistics
    blocked: Mapping[str, int]
    callbacks: CallbackCounts
    gateway: Counter[str] = field(default_factory=Counter)
    engine_totals: EngineTotals = field(default_factory=EngineTotals)

    def snapshot(self, report: BackendReport) -> dict[str, Any]:
        """Returns everything with the engines' own figures in `report`, as plain data (docs/statistics.md)."""
        counts = self.backend.counts
        return {
            **self.cache.figures(),
            "loaded_models": len(report.loaded_models),
            **self.statistics.snapshot(),
            **{name: counts.get(name, 0) for name in COUNTS},
            **{name: self.gateway[name] for name in GATEWAY_COUNTS},
            "blocked_prompts": dict(self.blocked),
            "callbacks": self.callbacks.figures(),
            "redis_damaged": self._redis_damaged,
            **engine_figures(report.engines),
        }

    def samples(self) -> Iterator[Sample]:
        """Yields what this process has counted. May be called from any thread."""
        yield build_sample()
        yield from self.statistics.samples()
        yield from self.cache.samples()
        for name, metric in COUNTS.items():
            yield Sample(metric, (), self.backend.counts.get(name, 0))
        for name, metric in GATEWAY_COUNTS.items():
            yield Sample(metric, (), self.gateway[name])
        for rule, number in dict(self.blocked).items():
            yield Sample(BLOCKED, (rule,), number)
        yield from self.callbacks.samples()
        yield Sample(REDIS_DAMAGED, (), self._redis_damaged)

    def samples_with(self, report: BackendReport) -> list[Sample]:
        """Returns `samples`, and those of the engines in `report` and of all that have reported before."""
        return [*self.samples(), *self.engine_totals.samples(report.engines)]

    @property
    def _redis_damaged(self) -> int:
        return 0 if self.redis is None else self.redis.damaged

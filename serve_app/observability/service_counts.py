"""Counts of what happens to requests around the engines: lost replicas, limits, blocked prompts, damage in Redis."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deployments.metrics import BLOCKED, COUNTS, GATEWAY_COUNTS, REDIS_DAMAGED, Sample
from serve_app.store.redis import RedisTier


@dataclass(frozen=True, slots=True)
class ServiceCounts:
    """What a service's parts have counted: its `backend`, the `gateway` in front of it, its blocklist by rule, Redis.

    May be read from any thread.
    """

    backend: Callable[[], Mapping[str, int]]
    gateway: Mapping[str, int]
    blocked: Mapping[str, int]
    redis: RedisTier | None

    def figures(self) -> dict[str, Any]:
        """The counts, as plain data."""
        lost = self.backend()
        return {
            **{name: lost.get(name, 0) for name in COUNTS},
            **{name: self.gateway.get(name, 0) for name in GATEWAY_COUNTS},
            "blocked_prompts": dict(self.blocked),
            "redis_damaged": self._damaged,
        }

    def samples(self) -> Iterator[Sample]:
        """The same for Prometheus."""
        lost = self.backend()
        for name, metric in COUNTS.items():
            yield Sample(metric, (), lost.get(name, 0))
        for name, metric in GATEWAY_COUNTS.items():
            yield Sample(metric, (), self.gateway.get(name, 0))
        for rule, number in dict(self.blocked).items():
            yield Sample(BLOCKED, (rule,), number)
        yield Sample(REDIS_DAMAGED, (), self._damaged)

    @property
    def _damaged(self) -> int:
        return 0 if self.redis is None else self.redis.damaged

"""Counts the tries to send webhooks and images of jobs to callers' addresses."""

from collections import Counter
from collections.abc import Iterator

from deployments.metrics import CALLBACK_OUTCOMES, CALLBACKS, Sample


class CallbackCounts(Counter[tuple[str, str]]):
    """Tries by kind and outcome, which are `CALLBACK_OUTCOMES`."""

    def figures(self) -> dict[str, int]:
        """The counts by name, for the statistics."""
        return {f"{kind}_{outcome}": self[kind, outcome] for kind, outcome in CALLBACK_OUTCOMES}

    def samples(self) -> Iterator[Sample]:
        """Yields the counts, for Prometheus."""
        return (Sample(CALLBACKS, key, self[key]) for key in CALLBACK_OUTCOMES)

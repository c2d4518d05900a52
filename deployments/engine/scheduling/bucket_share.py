"""Chooses the bucket that steps next: device time is shared by what steps cost, not by the number of buckets."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from deployments.engine.protocol.params import Priority
from deployments.engine.protocol.request import Bucket

WEIGHTS: Final[Mapping[Priority, int]] = {"low": 1, "normal": 2, "high": 4}
"""The weight of a row, by its priority, in its bucket's share of the device."""


class BucketShare:
    """Weighted fair queueing (Demers, Keshav and Shenker, 1989) over buckets, in virtual seconds per weighted row.

    The bucket that has had the least device time for its rows runs next. A bucket that appears starts where all are on
    average, so that it neither waits for others to catch up nor collects credit while it was empty; and that average
    moves on with every second of the device, so that ever new buckets cannot keep an old one waiting.
    """

    def __init__(self) -> None:
        self._served: dict[Bucket, float] = {}
        self._weights: dict[Bucket, int] = {}
        self._average = 0.0

    def choose(self, buckets: Collection[Bucket]) -> Bucket | None:
        """Returns the bucket to step next, or None if there is none."""
        self._served = {bucket: seconds for bucket, seconds in self._served.items() if bucket in buckets}
        self._weights = {bucket: weight for bucket, weight in self._weights.items() if bucket in buckets}
        least, most = (end(self._served.values(), default=self._average) for end in (min, max))
        start = min(max(self._average, least), most)
        for bucket in buckets:
            self._served.setdefault(bucket, start)
        return min(self._served, key=lambda bucket: self._served[bucket], default=None)

    def charge(self, bucket: Bucket, seconds: float, rows: Iterable[Priority]) -> None:
        """Charges `bucket` for `seconds` of device time, with rows of these priorities in the step.

        The bill may come when the bucket has no rows any more: then it moves the average alone.
        """
        weight = self._weights[bucket] = sum(WEIGHTS[priority] for priority in rows)
        if bucket in self._served:
            self._served[bucket] += seconds / weight
        self._average += seconds / sum(self._weights.values())

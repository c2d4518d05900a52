"""Which bucket steps next: device time is shared among buckets by what their steps cost, not by how many they are."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from deployments.engine.params import Priority
from deployments.engine.row import Bucket

WEIGHTS: Final[Mapping[Priority, int]] = {"low": 1, "normal": 2, "high": 4}
"""What a row counts for its bucket's share of the device."""


class DeviceShare:
    """Weighted fair queueing (Demers, Keshav and Shenker, 1989) over buckets, in virtual seconds per weighted row.

    The bucket that has had the least device time for its rows runs next. A bucket that appears starts level with the
    least served one, so that it neither waits for others to catch up nor collects credit while it was empty.
    """

    def __init__(self) -> None:
        self._served: dict[Bucket, float] = {}

    def next_of(self, buckets: Collection[Bucket]) -> Bucket | None:
        """The bucket to step, or None when there is none."""
        self._served = {bucket: seconds for bucket, seconds in self._served.items() if bucket in buckets}
        start = min(self._served.values(), default=0.0)
        for bucket in buckets:
            self._served.setdefault(bucket, start)
        return min(self._served, key=lambda bucket: self._served[bucket], default=None)

    def charge(self, bucket: Bucket, seconds: float, rows: Iterable[Priority]) -> None:
        """`bucket` used the device for `seconds`, with rows of these priorities in the step."""
        self._served[bucket] += seconds / sum(WEIGHTS[priority] for priority in rows)

"""The rows that are being denoised. Knows rows and buckets. No torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from deployments.engine.protocol.request import Bucket
from deployments.engine.row import Row


@dataclass(slots=True)
class RunningRows:
    """Running rows, by bucket."""

    rows: dict[Bucket, list[Row]] = field(default_factory=dict)

    def of(self, bucket: Bucket) -> list[Row]:
        return self.rows.get(bucket, [])

    def unet_rows(self, bucket: Bucket) -> int:
        """Returns the most rows of a UNet call that the bucket's rows may take from now on."""
        return sum(row.most_unet_rows for row in self.of(bucket))

    def add(self, row: Row) -> None:
        self.rows.setdefault(row.request.bucket, []).append(row)

    def drop(self, leaves: Callable[[Row], bool]) -> list[Row]:
        """Removes the rows for which `leaves` is true, and returns them, out of their slots."""
        gone = [row for row in self if leaves(row)]
        kept = {bucket: [row for row in rows if not leaves(row)] for bucket, rows in self.rows.items()}
        self.rows = {bucket: rows for bucket, rows in kept.items() if rows}
        for row in gone:
            row.leave_slot()
        return gone

    def __iter__(self) -> Iterator[Row]:
        # Other threads read this too: each list is copied in one operation.
        return (row for rows in list(self.rows.values()) for row in list(rows))

    def __len__(self) -> int:
        # Other threads read this too: the list is copied in one operation.
        return sum(len(rows) for rows in list(self.rows.values()))

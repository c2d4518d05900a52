"""Measures calls until the memory plan knows them."""

from collections.abc import Iterator
from contextlib import contextmanager

from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.device import DeviceMemory
from deployments.engine.scheduling.memory_plan import Kind, MemoryPlan


@contextmanager
def meter_call(
    plan: MemoryPlan, device: DeviceMemory, kind: Kind, bucket: Bucket, rows: int, *, is_typical: bool = True
) -> Iterator[None]:
    """Meters the call in the context, and records its peak in `plan`, which knows no such call yet.

    Nothing is recorded of a call that is not `is_typical`, or beside which others were metered. Where metering is free
    those are metered as well, so that the others know of them.
    """
    is_new = is_typical and not plan.has_measured(kind, bucket, rows)
    if not is_new and not device.is_metering_free:
        yield
        return
    with device.meter() as meter:
        yield
    if is_new and meter.is_alone:
        plan.record_peak(kind, bucket, rows, meter.peak)

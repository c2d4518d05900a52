"""One thread updates, others read, with threads that switch all the time. No torch."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle

import pytest

from deployments.engine.protocol.counters import Counters, sum_counters
from deployments.engine.protocol.events import Timings
from deployments.engine.protocol.latencies import PhaseRecorder
from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.memory_plan import MemoryPlan

SIZES = (1, 2, 4, 8, 16)
NATIVE = Bucket("m", 512, 512)
OTHERS = [Bucket("m", 64 + 8 * i, 64) for i in range(200)]

FOR_S = 0.7


@pytest.fixture(autouse=True)
def _restless() -> Iterator[None]:
    """Threads that change places a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def race(tell: Callable[[Bucket], object], ask: Callable[[], object]) -> None:
    """Asks again and again while another thread tells of every bucket, at least once."""
    stop = threading.Event()

    def tells() -> None:
        for count, bucket in enumerate(cycle(OTHERS)):
            if stop.is_set() and count >= len(OTHERS):
                return
            tell(bucket)

    teller = threading.Thread(target=tells)
    teller.start()
    try:
        end = time.monotonic() + FOR_S
        while time.monotonic() < end:
            ask()
    finally:
        stop.set()
        teller.join()


@pytest.mark.parametrize("kind", ["denoise", "decode"])
def test_a_memory_plan_is_asked_while_it_is_told(kind: str) -> None:
    def plan() -> MemoryPlan:
        made = MemoryPlan(10**12, SIZES)
        made.record_peak("denoise", NATIVE, 2, 100)
        return made

    current = [plan()]

    def tell(bucket: Bucket) -> None:
        if bucket is OTHERS[0]:
            current[0] = plan()
        for rows in SIZES:
            current[0].record_peak("decode" if kind == "decode" else "denoise", bucket, rows, 10 * rows)
        current[0].record_out_of_memory(bucket, 16)

    def ask() -> None:
        now = current[0]
        assert now.rows(Bucket("m", 640, 512), 0) >= 0
        now.rows(OTHERS[-1], 0)
        now.figures()

    race(tell, ask)


def test_what_ran_out_while_others_asked_is_not_forgotten() -> None:
    plan = MemoryPlan(None, SIZES)
    race(lambda bucket: plan.record_out_of_memory(bucket, 8), lambda: plan.rows(NATIVE, 0))
    plan.record_out_of_memory(NATIVE, 8)
    assert plan.rows(NATIVE, 0) == 4
    assert sum(plan.rows(bucket, 0) == 4 for bucket in OTHERS) == len(OTHERS)


def test_step_costs_are_asked_while_they_are_told() -> None:
    current = [CostModel(SIZES)]

    def tell(bucket: Bucket) -> None:
        if bucket is OTHERS[0]:
            current[0] = CostModel(SIZES)
            current[0].record_call(NATIVE, 2, 0, 0.1)
        costs = current[0]
        costs.record_call(bucket, 2, 0, 0.1)
        costs.record_call(bucket, 4, 0, 0.1)
        costs.record_call(bucket, 2, 2, 0.2)
        costs.record_decode(bucket, 0.1)
        costs.record_call(NATIVE, 2, 0, 0.1)

    def ask() -> None:
        costs = current[0]
        costs.measured_calls()
        costs.row_seconds(NATIVE)
        costs.control_seconds(NATIVE)
        costs.decode_seconds(Bucket("m", 8, 8))
        costs.find_knee(NATIVE)

    race(tell, ask)


def test_counters_are_added_up_while_they_count() -> None:
    counters = [Counters(), Counters()]
    sizes = iter(range(10**9))
    race(lambda _: counters[0].record_step(1, next(sizes) % 5000, 2, 0.1), lambda: sum_counters(counters))
    assert sum_counters(counters).unet_calls == counters[0].unet_calls


def test_latencies_are_read_while_they_are_taken_down() -> None:
    recorder = PhaseRecorder()
    spans = cycle(range(1, 100_000, 7))

    def tell(_: Bucket) -> None:
        ms = float(next(spans))
        recorder.record(Timings(queued_ms=ms, encode_ms=ms, denoise_ms=ms, decode_ms=ms, total_ms=ms))

    race(tell, recorder.durations)

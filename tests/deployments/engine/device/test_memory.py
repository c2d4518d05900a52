"""On a CPU exactly the live tensors are counted."""

import pytest
import torch

from deployments.engine.device.memory import CpuMemory, CudaMemory
from deployments.engine.device.metering import meter_call
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.request import Bucket
from deployments.engine.scheduling.memory_plan import Kind, MemoryPlan
from deployments.engine.steps.pictures import decode_latents

MEGA = 1000 * 1000


def test_what_lives_at_once_counts_and_what_has_ended_does_not() -> None:
    given = torch.zeros(MEGA)
    with CpuMemory().meter() as meter:
        for _ in range(5):
            given.add(1.0)
        kept = given.add(1.0)
        other = kept.add(1.0)
    assert meter.peak == 2 * 4 * MEGA
    del other


def test_views_and_what_is_done_in_place_take_nothing() -> None:
    given = torch.zeros(MEGA)
    with CpuMemory().meter() as meter:
        given.view(1000, 1000).add_(1.0)
        given[:10].mul_(2.0)
    assert meter.peak == 0


@torch.inference_mode()
def test_a_batch_takes_as_much_more_as_it_is_larger(tiny_model: LoadedModel) -> None:
    peaks = []
    for decode_batch in (1, 2, 4):
        with CpuMemory().meter() as meter:
            decode_latents(tiny_model, torch.zeros(decode_batch, tiny_model.channels, 8, 8))
        peaks.append(meter.peak)
    assert peaks[1] == pytest.approx(2 * peaks[0], rel=0.01)
    assert peaks[2] == pytest.approx(4 * peaks[0], rel=0.01)


class SimulatedAllocator:
    """Counts as CUDA's allocator does: what is allocated, and the most of it since the last reset."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bytes = self.peak = 0
        patch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 100))
        patch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
        patch.setattr(torch.cuda, "memory_allocated", lambda _: self.bytes)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.peak)
        patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: self.take(0, reset=True))

    def take(self, size: int, *, reset: bool = False) -> None:
        """Allocates `size` bytes, or frees as many if it is negative."""
        self.bytes += size
        self.peak = max(0 if reset else self.peak, self.bytes)


def test_meters_that_overlap_record_nothing_less_than_their_own_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins when the first one's peak is over, and ends beside it."""
    allocator = SimulatedAllocator(monkeypatch)
    memory, plan = CudaMemory(torch.device("cuda")), MemoryPlan(None, (1, 2))
    bucket = Bucket("model", 64, 64)
    with meter_call(plan, memory, "decode", bucket, 1):
        allocator.take(50)
        allocator.take(-50)
        with meter_call(plan, memory, "denoise", bucket, 1):
            allocator.take(20)
            allocator.take(-20)
    assert plan.figures() == {}
    calls: tuple[tuple[Kind, int], ...] = (("decode", 50), ("denoise", 20))
    for kind, size in calls:
        with meter_call(plan, memory, kind, bucket, 1):
            allocator.take(size)
            allocator.take(-size)
    assert {kind: peak for (kind, *_), (peak, _) in plan.figures().items()} == {"decode": 50, "denoise": 20}


def test_a_call_that_is_known_spoils_the_figures_of_one_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = SimulatedAllocator(monkeypatch)
    memory, plan = CudaMemory(torch.device("cuda")), MemoryPlan(None, (1, 2))
    bucket = Bucket("model", 64, 64)
    plan.record_peak("decode", bucket, 1, 50)
    with meter_call(plan, memory, "denoise", bucket, 1), meter_call(plan, memory, "decode", bucket, 1):
        allocator.take(50)
    assert not plan.has_measured("denoise", bucket, 1)


def test_a_call_that_fails_is_metered_no_more_and_nothing_is_recorded_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    SimulatedAllocator(monkeypatch)
    memory, plan = CudaMemory(torch.device("cuda")), MemoryPlan(None, (1, 2))
    with pytest.raises(torch.OutOfMemoryError), meter_call(plan, memory, "decode", Bucket("model", 64, 64), 1):
        raise torch.OutOfMemoryError
    assert plan.figures() == {}
    with memory.meter() as meter:
        pass
    assert meter.is_alone


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_allocator_and_the_count_agree(tiny_model: LoadedModel) -> None:
    device = torch.device("cuda")
    memory = CudaMemory(device)
    with memory.meter() as meter:
        block = torch.zeros(10 * MEGA, device=device)
    assert meter.peak == pytest.approx(block.nbytes, rel=0.06)

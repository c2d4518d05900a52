"""On a CPU exactly the live tensors are counted."""

import pytest
import torch

from deployments.engine.device.memory import CpuMemory
from deployments.engine.models.loaded_model import LoadedModel
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_allocator_and_the_count_agree(tiny_model: LoadedModel) -> None:
    from deployments.engine.device.memory import CudaMemory

    device = torch.device("cuda")
    memory = CudaMemory(device)
    with memory.meter() as meter:
        block = torch.zeros(10 * MEGA, device=device)
    assert meter.peak == pytest.approx(block.nbytes, rel=0.06)

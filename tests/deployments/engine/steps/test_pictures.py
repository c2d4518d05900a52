"""Pictures are made on the device: their bytes, and whether they are pictures; the host only waits for the copy."""

import queue
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deployments.engine.device.memory import CpuMemory
from deployments.engine.device.streams import HostStream, WorkStream
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import Cancelled
from deployments.engine.scheduling.memory_plan import MemoryPlan
from deployments.engine.steps import decode
from deployments.engine.steps.decode import DecodedImage, Decoder, _Job
from deployments.engine.steps.pictures import DARKEST, decode_latents, find_valid, make_pictures
from tests.deployments.engine.harness import request_for
from tests.deployments.engine.steps.simulated_device import SimulatedDevice, SimulatedStopwatch

NAN, INF = float("nan"), float("inf")


def pixels_of(*values: float) -> Tensor:
    """Pictures [B, 2, 2, 3] of one value each."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).repeat(1, 2, 2, 3)


def was_valid(pixels: Tensor) -> bool:
    """What the host computed before the device did."""
    return bool(torch.isfinite(pixels).all()) and float(pixels.max()) >= 0.5 / 255


@given(st.lists(st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, NAN, INF, DARKEST, 1 / 512]))))
def test_the_device_finds_the_same_pictures_valid_as_the_host_did(values: list[float]) -> None:
    pixels = pixels_of(*values, 0.0, 1.0, float(np.nextafter(np.float32(DARKEST), np.float32(0))))
    assert find_valid(pixels).tolist() == [was_valid(each) for each in pixels]


def test_values_are_rounded_as_ever_and_what_is_no_number_becomes_black() -> None:
    pixels = pixels_of(0.0, 0.5 / 255, 1.5 / 255, 0.5, 1.0, NAN)
    pictures = make_pictures(pixels, torch.zeros(6, 4, 1, 1))
    expected = (pixels.nan_to_num() * 255).round().to(torch.uint8)
    assert torch.equal(pictures.values, expected)
    assert pictures.values[:, 0, 0, 0].tolist() == [0, 0, 2, 128, 255, 0]
    assert pictures.values.is_contiguous()


def test_each_latent_says_for_itself_whether_it_was_finite() -> None:
    latents = torch.zeros(3, 4, 2, 2)
    latents[1, 2, 0, 1] = NAN
    assert make_pictures(pixels_of(1, 1, 1), latents).were_finite.tolist() == [True, False, True]


def test_no_value_goes_to_the_host_while_pictures_are_made() -> None:
    """On `meta` a value cannot be asked for: an operation that would wait for one raises."""
    pixels = torch.empty(2, 64, 64, 3, device="meta")
    pictures = make_pictures(pixels, torch.empty(2, 4, 8, 8, device="meta"))
    assert pictures.values.dtype == torch.uint8
    assert {each.device.type for each in (pictures.values, pictures.are_valid, pictures.were_finite)} == {"meta"}


class LateCopies(HostStream):
    """A device whose copies are there only when somebody has waited for them."""

    def __init__(self) -> None:
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.waits = 0

    def copy_to_host(self, tensor: Tensor) -> Tensor:
        late = torch.full_like(tensor, 7)
        self.copies.append((late, tensor))
        return late

    def start_stopwatch(self) -> SimulatedStopwatch:
        return Arriving(self)


class Arriving(SimulatedStopwatch):
    def __init__(self, stream: LateCopies) -> None:
        super().__init__(SimulatedDevice(), 0.5)
        self._stream = stream

    def stop(self) -> None:
        self._stopped = len(self._stream.copies)

    def wait(self) -> float:
        self._stream.waits += 1
        for late, tensor in self._stream.copies[: self._stopped]:
            late.copy_(tensor)
        return self.seconds


def test_the_decoder_waits_for_the_copy_once_for_all_pictures_of_a_call(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = LateCopies()

    def own_stream(_: torch.device) -> WorkStream:
        return stream

    monkeypatch.setattr(decode, "new_stream", own_stream)
    latents = torch.randn(3, 4, 8, 8)
    expected = make_pictures(decode_latents(tiny_model, latents), latents)
    decoder = Decoder(lambda _: None, MemoryPlan(None, (1, 2)), CpuMemory(), decode_batch=4)
    row = cast(Any, SimpleNamespace(request=request_for(tiny_model, "x")))
    try:
        pictures, _ = decoder._make_pictures(stream, [_Job(row, tiny_model, each, None, None) for each in latents])
    finally:
        decoder.close()
    assert stream.waits == 1
    assert torch.equal(pictures.values, expected.values)
    assert bool(pictures.are_valid.all())


def test_nothing_is_decoded_for_a_request_that_is_gone(tiny_model: LoadedModel) -> None:
    done: queue.SimpleQueue[DecodedImage] = queue.SimpleQueue()
    row = cast(Any, SimpleNamespace(request=request_for(tiny_model, "x"), state=torch.full((1, 4, 8, 8), torch.nan)))
    decoder = Decoder(done.put, MemoryPlan(None, (1, 2)), CpuMemory(), is_gone=lambda request_id: request_id == "x")
    try:
        decoder.decode_image(row, tiny_model)
        decoded = done.get(timeout=30)
    finally:
        decoder.close()
    assert decoded.row is row
    assert isinstance(decoded.result, Cancelled)
    assert not decoded.is_invalid
